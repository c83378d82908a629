"""The race as a moving picture, for a README and for slides: a GIF, drawn with the Pillow that
matplotlib brings. It shows what the terminal shows (race.py); its first line says what the clock
does.
"""

from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from show.race import NARROWEST, SMALLEST, Clock, picture

COLOURS = {  # letters, background
    "noise": ("#6b6b6b", None), "new": ("black", "#8fd3f4"), "changed": ("black", "#f5c04a"),
    "settled": ("black", None), "wrong": ("white", "#c0392b"), "title": ("black", None),
}
LINES = 30  # of characters; three panes are 114 wide
WIDTH, HEIGHT, SIZE = 8, 18, 13  # pixels of a character, and of its font
PER_SECOND = 4  # pictures
PACE, REST, STILL = 0.75, 8, 8  # seconds: a step of the fastest, what is left then, the end


def draw(rows, columns):
    """Rows of (str, style) as an image: a grid of characters."""
    image = Image.new("RGB", ((columns + 2) * WIDTH, (LINES + 1) * HEIGHT), "white")
    canvas = ImageDraw.Draw(image)
    fonts = {}
    for weight in ("normal", "bold"):
        found = findfont(FontProperties(family="monospace", weight=weight))
        fonts[weight] = ImageFont.truetype(found, SIZE)
    for y, row in enumerate(rows):
        x = 1
        for text, style in row:
            word, (colour, background) = text.lstrip(" "), COLOURS[style]
            left, top = (x + len(text) - len(word)) * WIDTH, (y + 0.5) * HEIGHT
            if background:
                canvas.rectangle((left - 1, top, left + len(word) * WIDTH, top + HEIGHT - 2),
                                 background)
            font = fonts["bold" if style in ("new", "changed", "title") else "normal"]
            canvas.text((left, top + 1), word, colour, font)
            x += len(text)
    return image.quantize(64)


def write_gif(path, runs, tokenizer):
    """The moving picture of the last three runs."""
    runs, clock = runs[-3:], Clock(runs[-3:], PACE, REST)
    columns = max(SMALLEST[0], len(runs) * (NARROWEST + 3) - 3)
    images, milliseconds = [], []
    while not images or clock.now < clock.end():
        if images:
            clock.advance(1 / PER_SECOND, clock.end())
        images.append(draw(picture(runs, clock, tokenizer, columns, LINES), columns))
        milliseconds.append(1000 // PER_SECOND)
    milliseconds[-1] = 1000 * STILL
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=milliseconds,
                   loop=0)
