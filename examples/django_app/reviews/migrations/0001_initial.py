"""The table of reviews."""

from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    """As ``makemigrations`` wrote it."""

    initial = True
    dependencies: ClassVar = []
    operations: ClassVar = [
        migrations.CreateModel(
            name="Review",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("text", models.TextField()),
                ("label", models.CharField(blank=True, max_length=200)),
                ("score", models.FloatField(null=True)),
                ("error", models.TextField(blank=True)),
                ("written_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={"ordering": ("-written_at", "-pk")},
        ),
    ]
