"""Exercises for students: docs/exercises.md."""
