"""Commands that train: models, classifiers, distilled models, learned steps, recipes, and `ddib try`."""
