"""The program of a helper process: it takes one user's identity and executes calls on request."""
