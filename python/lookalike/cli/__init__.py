"""The command line. `app` puts the commands together and turns errors into exit codes; nothing below knows of it."""
