"""Faces that are in a list more than once: with the same age, or by mistake with several ages."""

MAX_SHOWN = 5


def describe_repeats(faces):
    """Text about the faces that are in a list more than once, or "" if there are none.

    Args:
        faces: iterable of (face, age). face is a tuple of the photo and whatever tells its faces
            apart; age is text.
    """
    ages = {}
    for face, age in faces:
        ages.setdefault(face, []).append(age)
    several = {face: texts for face, texts in ages.items() if len(texts) > 1}
    differ = [f"{face[0]} {' and '.join(dict.fromkeys(texts))}"
              for face, texts in several.items() if len(set(texts)) > 1]
    parts = []
    if differ:
        parts.append(f"faces with more than one age: {len(differ)} ({_first(differ)})")
    if len(several) > len(differ):
        same = [face[0] for face, texts in several.items() if len(set(texts)) == 1]
        parts.append(f"faces listed again with the same age: {len(same)} ({_first(same)})")
    return "; ".join(parts)


def _first(texts):
    rest = len(texts) - MAX_SHOWN
    return ", ".join([*texts[:MAX_SHOWN], *([f"and {rest} more"] if rest > 0 else [])])
