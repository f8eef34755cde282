"""Reports for people: one HTML file that needs nothing but itself, the same in Markdown, and the model card.

Law of this package: values in (`content`), text out. Nothing here measures, reads a store or asks the clock.
"""
