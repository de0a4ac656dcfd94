"""A study: datasets × label ratios × methods × seeds as ordinary trainings, and the table that they make."""
