"""What a campaign could use instead of the general model, one file each."""
