"""Attacks on the page: pictures that cover it, style sheets, refreshes, remote images, links, text beside pictures."""

from glprune.schema import bundle as bundles
from tests.unit.audit.attack import Attack

COVER = "position:fixed;top:0;left:0;width:100vw;height:100vh;z-index:9;background:#fff"
VERIFIED = "<text x='20' y='20'>0 of 8 columns are read</text>"


def page(change):
    def edit(copy):
        path = copy / bundles.PAGE
        old = path.read_text(encoding="utf-8")
        new = change(old)
        assert new != old
        path.write_text(new, encoding="utf-8")

    return edit


def inside(markup):
    """Put markup into the first picture."""
    return lambda text: text.replace("</svg>", f"{markup}</svg>", 1)


def on(element, attribute):
    """Give the first such element of a picture an attribute."""
    return lambda text: _after(text, "<svg", f"<{element}", f" {attribute}")


def _after(text, first, second, added):
    at = text.index(second, text.index(first)) + len(second)
    return text[:at] + added + text[at:]


def on_svg(attribute):
    return lambda text: text.replace("<svg", f"<svg {attribute}", 1)


def before_picture(markup):
    return lambda text: text.replace("<svg", f"{markup}<svg", 1)


def another_version(change):
    """A page of another version of glprune is not rendered again; its markup is read all the same."""

    def edit(copy):
        copy.edit(lambda r: r["run"]["versions"].update(glprune="0.1.9"))
        page(change)(copy)

    return edit


def attack(name, change, base="slim"):
    return Attack(name, base, page(change), "C12", follows=False)


def of_another_version(name, markup):
    change = another_version(lambda text: text.replace("</main>", f"{markup}</main>", 1))
    return Attack(f"{name}, in a page of another version", "slim", change, "C12", follows=False)


IN_PICTURES = {
    "a picture over the whole page": on_svg(f'style="{COVER}"'),
    "a picture over the whole page, by a class of its own": on_svg('class="cover"'),
    "a part of a picture over the whole page": on("g", f'style="{COVER}"'),
    "a transparent part of a picture before the page": inside('<g style="position: absolute"></g>'),
    "a style sheet in a picture": inside("<style>main{display:none}</style>"),
    "a style sheet beside that of matplotlib": lambda t: t.replace("*{stroke-linejoin", "main{display:none}*{stroke-linejoin", 1),
    "a style sheet that loads another": inside('<style type="text/css">@import "//x.example/a.css";</style>'),
    "a style with an address": on("path", 'style="fill: url(https://x.example/a)"'),
    "a style with an escaped address": on("path", r'style="fill: u\72l(https://x.example/a)"'),
    "a refresh in a picture": inside('<meta http-equiv="refresh" content="0;url=https://x.example/">'),
    "a refresh that is closed": inside('<meta http-equiv="refresh" content="0;url=https://x.example/"/>'),
    "a remote image in a picture": inside('<image href="https://x.example/a.png" width="9" height="9"/>'),
    "an image with its data": inside('<image xlink:href="data:image/png;base64,AAAA" width="9" height="9"/>'),
    "an HTML image in a picture": inside('<img src="https://x.example/a.png"/>'),
    "an HTML image that is not closed": inside('<img src="https://x.example/a.png">'),
    "a picture of another file": inside('<use xlink:href="https://x.example/a.svg#a"/>'),
    "a script in a picture": inside("<script>alert(1)</script>"),
    "a script in upper case": inside("<SCRIPT>alert(1)</SCRIPT>"),
    "an event of a picture": on_svg('onload="alert(1)"'),
    "an event without quotes": inside("<path onclick=alert(1) />"),
    "an event after a slash": inside('<path/onclick="alert(1)"/>'),
    "HTML in a picture": inside("<foreignObject><div>verified</div></foreignObject>"),
    "a paragraph that leaves the picture": inside("<p>verified</p>"),
    "a frame in a picture": inside('<iframe srcdoc="verified"></iframe>'),
    "a link in a picture": inside('<a xlink:href="https://x.example/"><g></g></a>'),
    "a link to another part of the page": inside('<a href="#kept"><g></g></a>'),
    "an animation of a picture": inside('<animate attributeName="x" to="9"/>'),
    "a value that is set later": inside('<set attributeName="href" to="javascript:alert(1)"/>'),
    "a filter over a picture": inside('<filter id="a"><feImage href="https://x.example/a"/></filter>'),
    "a comment that HTML ends earlier": inside("<!--><script>alert(1)</script>-->"),
    "a section of characters": inside("<![CDATA[<script>alert(1)</script>]]>"),
    "an instruction to the reader": inside('<?xml-stylesheet href="https://x.example/a.css"?>'),
    "a name of the page's own": inside('<g id="kept"></g>'),
    "an attribute twice": on("g", 'id="a_1" id="b_1"'),
    "groups that draw each other without end": inside(
        '<g id="a_1"><use xlink:href="#a_2"/><use xlink:href="#a_2"/></g><g id="a_2"></g>'
    ),
    "an entity": inside("&cover;"),
    "an enormous font": inside("<text style=\"font: 900px 'DejaVu Sans'\">verified</text>"),
    "an enormous picture": lambda t: t.replace('width="518.4pt"', 'width="518400pt"', 1),
    "data beside an element": on("g", 'data-note="refused"'),
    "a description for screen readers": inside("<desc>refused</desc>"),
}  # fmt: skip
AROUND = {
    "a paragraph before a picture": before_picture("<p>verified by the authority</p>"),
    "a picture more": before_picture(f'<svg width="9pt" height="9pt">{VERIFIED}</svg>'),
    "a picture that is not closed": before_picture("<svg>"),
    "a style sheet before a picture": before_picture("<style>main{display:none}</style>"),
    "other line ends": lambda t: t.replace("\n", "\x0c", 1),
    "an empty line after the page": lambda t: t + "\n",
    "a page after the page": lambda t: t + "<script>alert(1)</script>",
    "the policy against content removed": lambda t: t.replace("default-src 'none'", "default-src *", 1),
}
OTHER = {
    "a script": "<script>alert(1)</script>",
    "a refresh": '<meta http-equiv="refresh" content="0;url=https://x.example/">',
    "a remote image": '<img src="https://x.example/a.png">',
    "a remote style sheet": '<link rel="stylesheet" href="https://x.example/a.css">',
    "a style over the page": f'<div style="{COVER}">verified</div>',
    "a style sheet over the page": "<style>div{position:fixed}</style>",
    "a form": '<form action="https://x.example/"><button>Approve</button></form>',
    "a link to another site": '<a href="https://x.example/">sources</a>',
    "a comment": "<!-- refused -->",
    "a picture over the page": f'<svg style="{COVER}">{VERIFIED}</svg>',
}
ATTACKS = [
    *(attack(name, change) for name, change in (IN_PICTURES | AROUND).items()),
    *(of_another_version(name, markup) for name, markup in OTHER.items()),
]
