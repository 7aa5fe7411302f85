"""The commands: parse the options, make one library call, print."""
