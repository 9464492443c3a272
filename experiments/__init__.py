"""Parts put together: the command line, searches, reports, reproduced papers, benchmarks."""
