"""What a merge states about privacy: accounting, composition, ledger."""
