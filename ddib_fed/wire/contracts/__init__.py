"""What a contract is: both sides, the limits, and what they agree on."""
