"""Small vision experts for scikit-learn's digits: trained in seconds, scored in milliseconds."""
