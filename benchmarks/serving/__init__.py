"""The image server under load, beside what a user would write instead."""
