"""The page."""

from __future__ import annotations

from functools import partial

from django import forms
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from reviews.models import Review
from reviews.tasks import classify

__all__ = ["reviews"]

SHOWN = 100


class ReviewForm(forms.Form):
    """What a customer fills in."""

    text = forms.CharField(label="Your review", widget=forms.Textarea(attrs={"rows": 4}))


@require_http_methods(["GET", "POST"])
def reviews(request: HttpRequest) -> HttpResponse:
    """Show the latest reviews; take one more."""
    form = ReviewForm(request.POST or None)
    if form.is_valid():
        with transaction.atomic():
            review = Review.objects.create(text=form.cleaned_data["text"])
            # Not before the row is there for the callback to find.
            transaction.on_commit(partial(classify, review))
        return redirect("reviews")
    page = {"form": form, "reviews": Review.objects.all()[:SHOWN]}
    return render(request, "reviews/reviews.html", page)
