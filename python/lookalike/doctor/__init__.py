"""What is wrong with an installation: checks that look, say what they found and how to mend it, and change nothing."""
