"""Faces that a list holds more than once, with the same age or, which is an error, with others."""

MAX_SHOWN = 5


def describe_repeats(faces):
    """Text about the faces that occur more than once, or "" if there are none.

    Args:
        faces: iterable of (face, age): a tuple that begins with the photo, and text.
    """
    ages = {}
    for face, age in faces:
        ages.setdefault(face, []).append(age)
    several = {face: texts for face, texts in ages.items() if len(texts) > 1}
    differ = [f"{face[0]} {' and '.join(dict.fromkeys(texts))}"
              for face, texts in several.items() if len(set(texts)) > 1]
    parts = []
    if differ:
        parts.append(f"{len(differ)} faces have more than one age: {_first(differ)}")
    if len(several) > len(differ):
        same = [face[0] for face, texts in several.items() if len(set(texts)) == 1]
        parts.append(f"{len(same)} faces occur more than once with the same age: {_first(same)}")
    return "; ".join(parts)


def _first(texts):
    rest = len(texts) - MAX_SHOWN
    return ", ".join([*texts[:MAX_SHOWN], *([f"and {rest} more"] if rest > 0 else [])])
