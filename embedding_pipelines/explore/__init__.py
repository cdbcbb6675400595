"""The live table for people and tools: as a DataFrame, in clusters, by its outliers, as files."""
