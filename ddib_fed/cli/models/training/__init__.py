"""Commands that train: models, classifiers, distilled models, learned steps, and `ddib try`."""
