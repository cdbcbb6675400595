"""The live table for people and other tools: as a DataFrame, in clusters, by its outliers, as
files."""
