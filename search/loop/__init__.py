"""Ask, evaluate, tell, and write everything down first; replay continues a stopped search."""
