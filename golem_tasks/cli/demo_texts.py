"""What the demo sends: sentences as people write them, three long reviews, and a job that fails."""

from __future__ import annotations

__all__ = ["SENTENCES", "TOO_LONG", "WARM_UP"]

WARM_UP = "A first sentence, so that nothing below is measured cold."

_LONG = (
    (
        "I went in expecting very little, because the trailer gave away half the jokes and the "
        "reviews had been lukewarm at best. What I got instead was one of the warmest films of "
        "the year: a family comedy that trusts its audience, lets its silences breathe, and "
        "gives even the grumpy neighbour a moment of grace. The lead is a revelation, the score "
        "never pushes too hard, and when the credits rolled nobody in the room moved for a good "
        "half minute. I called my sister from the car park to tell her to go."
    ),
    (
        "Two hours and forty minutes, and I could tell you the plot in a sentence. The dialogue "
        "sounds as if it had been translated twice, every action scene is cut so fast that you "
        "never know who is hitting whom, and the big twist is announced by the music ten "
        "minutes before the hero notices. There is a decent idea buried somewhere in the second "
        "act, about a town that forgets one person every night, but the script forgets it too. "
        "By the end I was checking the time every few minutes, and I was not the only one."
    ),
    (
        "The hotel looks exactly like the pictures, which is more than most can say. The room "
        "was small but spotless, the shower had real pressure, and the staff at the desk sorted "
        "out our broken booking within five minutes and with a smile. Breakfast is simple: "
        "fresh bread, good coffee, fruit that tastes of something. The street is noisy until "
        "midnight, so ask for a room at the back. We will certainly come again, and next time "
        "we will stay for a week."
    ),
)

SENTENCES: tuple[str, ...] = (
    "I love this.",
    "I hate this.",
    "Not bad at all.",
    "What a waste of two hours!",
    "The best meal I have had in years.",
    "The battery died after a single day.",
    "An absolute joy from the first minute to the last.",
    "The plot makes no sense and the acting is worse.",
    "She plays the part with wit, warmth and a lot of nerve.",
    "I fell asleep twice and regret nothing but the ticket.",
    _LONG[0],
    "Arrived broken, and nobody answers my mails.",
    "Quietly brilliant.",
    "Loud, long and empty.",
    "My kids want to watch it again tomorrow, and so do I.",
    "It never gets going.",
    "Beautifully shot, cleverly written, wonderfully played.",
    "The app crashes whenever I open the settings.",
    "It does what it says on the box, and does it well.",
    "A lazy sequel that nobody needed.",
    "Five stars, and I would give six.",
    "The support team was friendly and solved it at once.",
    "I want my money back.",
    _LONG[1],
    "Funny, sad and true, often all at once.",
    "The jokes are stale and the hero is a bore.",
    "Nothing I'd ever recommend to a friend.",
    "A small film with a big heart.",
    "The soup was cold and the waiter was rude.",
    "I haven't laughed that hard in a long time.",
    "Dull.",
    "Superb!",
    "It isn't great, but it has its charm.",
    "A mess of half-baked ideas and clumsy dialogue.",
    "The sound is crisp and the picture is stunning.",
    "I couldn't put the book down, and finished it at dawn.",
    _LONG[2],
    "Overpriced, underwhelming, and far too salty.",
    "One of those rare films you'll still think about next week.",
    "Please, never again.",
)
"""All of them are valid; they travel as one job each."""

TOO_LONG = "This story goes on, and on, and on, without ever coming to its point. " * 60
"""Longer than the model reads; sent with ``on_long="error"`` it fails, in the midst of the rest."""
