"""The command `fusepipe`: one file per command, and what they share."""
