"""The quickstart: small byte-level experts trained from text that every Python has."""
