"""A review and what the model said of it."""

from __future__ import annotations

from django.db import models


class Review(models.Model):
    """What a customer wrote; ``label`` and ``error`` are empty while it waits for its answer."""

    text = models.TextField()
    label = models.CharField(max_length=200, blank=True)
    score = models.FloatField(null=True)
    error = models.TextField(blank=True)
    written_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """The latest first."""

        ordering = ("-written_at", "-pk")

    def __str__(self) -> str:
        return f"{self.label or self.error or 'waiting'}: {self.text[:50]}"
