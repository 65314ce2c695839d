"""What tests of several folders share: the state of the world around a test, and programs that it runs."""
