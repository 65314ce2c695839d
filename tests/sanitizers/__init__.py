"""The C modules under the compiler's sanitizers: a copy of these sources, built with them, runs tests and a load."""
