"""The commands of the command line, by what they work on: parse, call one function, print."""
