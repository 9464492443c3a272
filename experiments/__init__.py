"""Where the parts are put together: command line, assembly, reports and shipped experiments."""
