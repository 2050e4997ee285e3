"""A migration's data and adapter for others: as folders, and to the Hugging Face Hub. Files and Hub get the same."""
