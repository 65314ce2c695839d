"""`fusepipe-posix`: runs the `.t` files of a POSIX suite that the user has built, on any directory.

It uses nothing else of fusepipe, and what is under test need not be fusepipe's.

errors -> results -> assertions (what a file said)    groups (a program and its descendants, with an end)
checkout (the files)   directory (where they run)  -> running (one file) -> schedule (all files)
console, junit, json_report (what came of it) -> command (options and exit codes) -> main
"""
