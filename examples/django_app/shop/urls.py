"""One page: the reviews, and a form for the next."""

from django.urls import path

from reviews.views import reviews

urlpatterns = [path("", reviews, name="reviews")]
