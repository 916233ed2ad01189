"""The plainest situations of `wordmath`: somebody has things, gets some and parts with some."""

# ruff: noqa: E501 - one wording a line reads better than wrapped ones

from __future__ import annotations

from unmask.tasks.wordmath.template import Template

_POOLS = ("toy", "fruit", "sweet")
_GETS = "[gets|buys|finds|picks up|is given] {b} more[ {item}|]"
_GOT = "[got|bought|found|was given] {b} more[ {item}|]"
_LOSES = "[eats|loses|gives away|sells] {c}[ of them| {item}|]"
_LOST = "[lost|gave away|sold|dropped] {c}[ of them| {item}|]"


def _gain_then_loss(pool: str) -> Template:
    loses = _LOSES if pool != "toy" else _LOSES.replace("eats|", "")
    return Template(
        f"plain-gain-loss-{pool}",
        "a=3..99 b=2..60 c=2..80",
        (
            f"{{A}} <has> {{a:item}}. {{A.He}} {_GETS}. [Then {{A.he}}|After that {{A.he}}|{{A.He}}|Later {{A.he}}] {loses}. // <left item A>",
            f"{{A}} <has> {{a:item}}, {_GETS} and {loses}. // <left item A>",
            f"{{A}} <had> {{a:item}}. {{A.He}} {_GOT}[. Then {{A.he}}| and then| and] {_LOST}. // <left item A>",
            "{A} has {a:item}. {B} gives {A.him} {b} more, and {A} gives {c} to {C}. // How many {item} does {A} have [now|left|in the end]?",
            f"<day>{{A}} [buys|picks|gets] {{a:item}}. {{A.He}} {_GETS} and {loses}. // <left item A>",
        ),
        ("x = a + b | item | {item:Many} in all", "r = x - c | item | {item:Many} left"),
        f"item={pool}",
    )


def _loss_then_gain(pool: str) -> Template:
    loses = _LOSES if pool != "toy" else _LOSES.replace("eats|", "")
    return Template(
        f"plain-loss-gain-{pool}",
        "a=5..99 c=2..80 b=2..60",
        (
            f"{{A}} <has> {{a:item}}. {{A.He}} {loses}. [Then {{A.he}}|After that {{A.he}}|{{A.He}}|Later {{A.he}}] {_GETS}. // How many {{item}} does {{A.he}} have [now|then|in the end]?",
            f"{{A}} <has> {{a:item}}, {loses} and {_GETS}. // How many {{item}} does {{A.he}} have [now|then|in the end]?",
            f"{{A}} <had> {{a:item}}. {{A.He}} {_LOST}[. Then {{A.he}}| and then| and] {_GOT}. // How many {{item}} does {{A.he}} have [now|in the end]?",
            "{A} has {a:item}. {A.He} gives {c} to {B} and gets {b} more from {C}. // How many {item} does {A} have [now|then|in the end]?",
        ),
        ("x = a - c | item | {item:Many} left", "r = x + b | item | {item:Many} now"),
        f"item={pool}",
    )


TEMPLATES: tuple[Template, ...] = tuple(make(pool) for pool in _POOLS for make in (_gain_then_loss, _loss_then_gain))
