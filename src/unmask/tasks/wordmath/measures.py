"""Situations of `wordmath` about travel, time, lengths, weights, areas, ages and rates.

See `template` for the language.
"""

# ruff: noqa: E501 - one wording a line reads better than wrapped ones

from __future__ import annotations

from unmask.tasks.wordmath.template import Template

TEMPLATES: tuple[Template, ...] = (
    Template(
        "two-legs",
        "v=5*8..22 t=2..6 w=5*8..22 s=2..6",
        (
            "{A} drives at {v} km an hour for {t:hour} and then at {w} km an hour for {s:hour}. How far does {A.he} drive [in total|altogether]?",
            "A [train|bus|truck] goes {v} km an hour for {t:hour}, then {w} km an hour for {s:hour}. How many kilometres does it go?",
            "How many kilometres does {A} travel in {t:hour} at {v} km an hour and {s:hour} at {w} km an hour?",
        ),
        (
            "x = v * t | kilometre | First part",
            "y = w * s | kilometre | Second part",
            "d = x + y | kilometre | Whole way",
        ),
        held=(
            "For {t:hour} {A} travels {v} km every hour; for the next {s:hour}, {w} km every hour. What distance does {A.he} cover?",
        ),
    ),
    Template(
        "trip-remaining",
        "v=5*8..22 t=2..6 d=50*6..20",
        (
            "{A} drives to a town {d} km away at {v} km an hour. How many kilometres are left after {t:hour}?",
            "A trip is {d} km long. {A} has driven for {t:hour} at {v} km an hour. How far must {A.he} still go?",
            "The way to the [coast|city|mountains] is {d} km. After {t:hour} at {v} km an hour, how many kilometres remain?",
        ),
        ("x = v * t | kilometre | Driven in {t:hour}", "r = d - x | kilometre | Kilometres left"),
    ),
    Template(
        "fuel-range",
        "k=8..20 t=5..9 d=10..90",
        (
            "{A}'s {vehicle:one} goes {k} km on one litre. The tank holds {t:litre}. {A.He} has driven {d} km with a full tank. "
            "How many more kilometres can {A.he} go?",
            "{vehicle:an} needs one litre for {k} km. It starts with {t:litre} and goes {d} km. How many kilometres can it still go?",
        ),
        ("x = k * t | kilometre | Range", "r = x - d | kilometre | Kilometres left"),
        "vehicle=vehicle",
    ),
    Template(
        "commute",
        "s=3..30 d=3..6 w=2..5",
        (
            "{A} lives {s} km from [work|school]. {A.He} goes there and back on {d:day} a week. How many kilometres is that in {w:week}?",
            "It is {s} km to {A}'s [office|school]. How many kilometres does {A.he} travel in {w:week} if {A.he} goes there and back "
            "{d:day} a week?",
            "{d:day} a week, {A} cycles {s} km to [work|school] and the same way back. How far is that in {w:week}?",
        ),
        (
            "x = s * 2 | kilometre | There and back",
            "y = x * d | kilometre | One week",
            "z = y * w | kilometre | {w:week}",
        ),
    ),
    Template(
        "fence-cost",
        "l=6..30 b=4..20 c=2..9",
        (
            "A [garden|field|yard] is {l} m long and {b} m wide. A fence costs {c:$} a metre. What does a fence around it cost?",
            "{A} puts a fence around a [garden|field|playground] that is {l} m long and {b} m wide. "
            "One metre costs {c:$}. How much does {A.he} pay?",
            "How much does {A} pay for a fence around {A.his} {l} m by {b} m [garden|field], at {c:$} a metre?",
        ),
        (
            "x = l + b | metre | Length and width",
            "p = x * 2 | metre | All around",
            "t = p * c | dollar | Cost of the fence",
        ),
    ),
    Template(
        "floor-tiles",
        "l=4..15 b=3..9 c=2..9 d=5..40",
        (
            "A [room|hall|floor] is {l} m long and {b} m wide. Tiles cost {c:$} a square metre and the glue costs {d:$}. What is the total cost?",
            "{A} lays tiles in a room of {l} m by {b} m. One square metre of tiles costs {c:$}, and {A.he} pays {d:$} for glue. "
            "How much does {A.he} pay [in total|altogether]?",
        ),
        (
            "x = l * b | square metre | Area",
            "y = x * c | dollar | Cost of the tiles",
            "t = y + d | dollar | With the glue",
        ),
        held=(
            "With glue for {d:$} and tiles at {c:$} a square metre, what does {A} pay to tile a floor {l} m long and {b} m wide?",
        ),
    ),
    Template(
        "garden-pond",
        "l=10..30 b=6..9 p=2..5 q=2..5",
        (
            "A [garden|park] is {l} m long and {b} m wide. A pond in it is {p} m long and {q} m wide. How many square metres are left?",
            "{A} has a lawn of {l} m by {b} m and digs a pond of {p} m by {q} m in it. How many square metres of lawn remain?",
            "How large is the rest of a {l} m by {b} m [garden|lawn] when a {p} m by {q} m pond is taken out?",
        ),
        (
            "x = l * b | square metre | Whole area",
            "y = p * q | square metre | Pond",
            "r = x - y | square metre | Area left",
        ),
    ),
    Template(
        "age-times",
        "a=5..15 k=2..4 n=2..20",
        (
            "{A} is {a:year} old. {A.His} [aunt|mother|uncle|father] is {k} times as old. How old will this person be in {n:year}?",
            "{B} is {k} times as old as {A}, who is {a}. How old will {B} be in {n:year}?",
        ),
        ("x = a * k | year | Age now", "y = x + n | year | Age in {n:year}"),
        held=("{A} is {a} and {B} is {k} times that age. What age will {B} reach {n:year} from now?",),
    ),
    Template(
        "age-sum",
        "a=5..40 d=2..20 n=2..20",
        (
            "{A} is {a:year} old and {B} is {d:year} older. What will be the sum of their ages in {n:year}?",
            "{B} is {d:year} older than {A}. {A} is {a}. How old will they be together in {n:year}?",
        ),
        (
            "x = a + d | year | {B}'s age now",
            "y = a + n | year | {A} in {n:year}",
            "z = x + n | year | {B} in {n:year}",
            "t = y + z | year | Together",
        ),
    ),
    Template(
        "practice-minutes",
        "m=10..60 d=3..7 h=1..6",
        (
            "{A} practises the [piano|flute|violin] {m:minute} a day for {d:day} and then another {h:hour} on Sunday. How many minutes is that?",
            "For {d:day} {A} trains {m:minute} a day, and on the last day {A.he} trains {h:hour} more. How many minutes does {A.he} train?",
            "How many minutes does {A} [read|dance|swim] if {A.he} does so {m:minute} a day for {d:day}, and for {h:hour} more at the end?",
        ),
        (
            "x = m * d | minute | In {d:day}",
            "y = h * 60 | minute | {h:hour}",
            "t = x + y | minute | All minutes",
        ),
    ),
    Template(
        "film-left",
        "h=1..4 m=5..55 w=10..59",
        (
            "A [film|concert|play] lasts {h:hour} and {m:minute}. {A} has watched {w:minute}. How many minutes are left?",
            "{A} is at a [film|show|match] of {h:hour} and {m:minute}. After {w:minute} {A.he} looks at the clock. How many minutes remain?",
        ),
        (
            "x = h * 60 | minute | {h:hour}",
            "y = x + m | minute | Whole time",
            "r = y - w | minute | Minutes left",
        ),
        held=("How many minutes of a film of {h:hour} and {m:minute} has {A} not seen after {w:minute}?",),
    ),
    Template(
        "holiday-days",
        "w=2..9 d=1..6 p=3..9",
        (
            "{A} is away for {w:week} and {d:day} and spends {p:$} a day on [food|tickets|drinks]. How much does {A.he} spend?",
            "A trip takes {w:week} and {d:day}. {A} pays {p:$} for each day. What does {A.he} pay [in total|altogether]?",
            "How much does {A} spend in {w:week} and {d:day} at {p:$} a day?",
        ),
        (
            "x = w * 7 | day | {w:week}",
            "y = x + d | day | All days",
            "t = y * p | dollar | Money spent",
        ),
    ),
    Template(
        "rope-pieces",
        "c=10*1..5 m=2..20 u=2..15",
        (
            "{A} cuts a rope of {m:metre} into pieces of {c} cm and uses {u} of them. How many pieces are left?",
            "A [rope|ribbon|wire] is {m:metre} long. It is cut into pieces of {c} cm, and {A} takes {u:piece}. How many pieces remain?",
        ),
        (
            "x = m * 100 | centimetre | Length",
            "y = x / c | piece | Pieces",
            "r = y - u | piece | Pieces left",
        ),
    ),
    Template(
        "flour-kilos",
        "k=2..6 g=50*2..9 n=2..8",
        (
            "{A} has {k} kg of flour and uses {g:gram} for each of {n:loaf}. How many grams are left?",
            "From a bag of {k} kg of flour, {A} bakes {n:loaf} of bread with {g:gram} each. How many grams of flour remain?",
            "How many grams of {k} kg of flour are left after {n:loaf} that need {g:gram} each?",
        ),
        (
            "x = k * 1000 | gram | All flour",
            "y = g * n | gram | Used",
            "z = x - y | gram | Grams left",
        ),
    ),
    Template(
        "dozens",
        "d=2..12 u=2..20 k=2..9",
        (
            "{A} buys {d} dozen {item}. {A.He} uses {u} and shares the rest equally among {k:friend}. How many does each friend get?",
            "There are {d} dozen {item} in a box. {A} takes {u} of them, and {k:friend} share the others equally. How many does each get?",
        ),
        (
            "x = d * 12 | item | {item:Many} in all",
            "y = x - u | item | {item:Many} left",
            "z = y / k | item | Each friend gets",
        ),
        "item=bread",
    ),
    Template(
        "water-tank",
        "p=10..60 m=3..9 s=20..300 t=100*5..20",
        (
            "A tank holds {t:litre} and has {s:litre} in it. A pump fills in {p:litre} a minute for {m:minute}. How many litres still fit in?",
            "A pump brings {p:litre} a minute into a tank of {t:litre}. There were {s:litre} in it before. "
            "After {m:minute}, how many litres are missing until it is full?",
        ),
        (
            "x = p * m | litre | Pumped in",
            "y = x + s | litre | In the tank",
            "r = t - y | litre | Litres missing",
        ),
        held=(
            "{A} pumps {p:litre} a minute for {m:minute} into a pool of {t:litre} that held {s:litre}. How many litres are missing?",
        ),
    ),
    Template(
        "candle",
        "l=50*3..9 c=5..30 h=2..8",
        (
            "A candle is {l} mm tall and burns down {c} mm an hour. How tall is it after {h:hour}?",
            "{A} lights a candle of {l} mm. Each hour it gets {c} mm shorter. How many millimetres are left after {h:hour}?",
            "How many millimetres are left of a {l} mm candle that loses {c} mm an hour, after {h:hour}?",
        ),
        ("x = c * h | millimetre | Burnt in {h:hour}", "r = l - x | millimetre | Millimetres left"),
    ),
    Template(
        "stairs",
        "f=2..9 s=10..20 c=5..9",
        (
            "A [tower|house] has {f:floor} with {s:stair} each. Each stair is {c} inches high. How many inches is it to the top?",
            "{A} climbs {f:floor} of {s:stair}. One stair is {c} inches high. How many inches does {A.he} climb?",
        ),
        ("x = f * s | stair | Stairs in all", "y = x * c | inch | Height"),
    ),
    Template(
        "factory",
        "m=12..60 h=2..8 d=2..6 b=5..60",
        (
            "{machine:an} makes {m:item} an hour and runs {h:hour} a day. In {d:day}, {b:item} are broken. How many good {item} are there?",
            "{A}'s {machine:one} runs {h:hour} a day and makes {m:item} an hour. After {d:day}, {b} of the {item} are thrown away. "
            "How many {item} are left?",
        ),
        (
            "x = m * h | item | {item:Many} in one day",
            "y = x * d | item | {item:Many} in {d:day}",
            "z = y - b | item | Good {item}",
        ),
        "machine=machine item=made",
    ),
    Template(
        "printing",
        "p=4..20 _m=p*3..30 c=2..9 b=10..60",
        (
            "{A} prints {c} copies of a text of {b:page}. The printer makes {p:page} a minute. How many minutes does it take?",
            "A printer makes {p:page} a minute. How many minutes does it need for {c} copies of {b:page} each?",
        ),
        ("x = c * b | page | Pages in all", "t = x / p | minute | Time"),
    ),
    Template(
        "mean-of-three",
        "_m=3*10..90 a=10..90 b=10..90 _s=a+b c=_m-_s",
        (
            "{A} scores {a}, {b} and {c} points in three games. What is {A.his} mean score?",
            "In three tests {A} gets {a}, {b} and {c} points. How many points is that on average?",
            "What is the average of {A}'s results of {a}, {b} and {c} points?",
        ),
        (
            "x = a + b | point | First two",
            "y = x + c | point | All three",
            "z = y / 3 | point | Average",
        ),
    ),
    Template(
        "swimming",
        "p=25*1..2 n=4..16 d=2..6 b=100*1..6",
        (
            "A pool is {p} m long. {A} swims {n:length} a day for {d:day} and {b} m in the lake. How many metres does {A.he} swim?",
            "{A} swims {n:length} of a {p} m pool on each of {d:day}. In the lake {A.he} swims another {b} m. How many metres is that in all?",
        ),
        (
            "x = n * p | metre | One day",
            "y = x * d | metre | {d:day}",
            "t = y + b | metre | All metres",
        ),
    ),
    Template(
        "growing",
        "a=5..60 g=2..9 n=2..9 c=2..20",
        (
            "{flower:an} is {a} cm tall and grows {g} cm a week. After {n:week} {A} cuts off {c} cm. How tall is it then?",
            "{A} has {flower:an} of {a} cm. It grows {g} cm each week for {n:week}, then {A.he} cuts {c} cm off. How tall is it now?",
        ),
        (
            "x = g * n | centimetre | Growth in {n:week}",
            "y = a + x | centimetre | Before the cut",
            "z = y - c | centimetre | After the cut",
        ),
        "flower=flower",
    ),
    Template(
        "relay",
        "n=3..8 l=2..6 m=100*2..5 t=1000*6..9",
        (
            "{n:runner} run {l:lap} each. A lap is {m} m. They want to run {t} m together. How many metres are missing?",
            "A team of {n:runner} has a goal of {t} m. Each of them runs {l:lap} of {m} m. How many metres are left to run?",
        ),
        (
            "x = n * l | lap | Laps in all",
            "y = m * x | metre | Metres run",
            "r = t - y | metre | Metres missing",
        ),
    ),
    Template(
        "truck-load",
        "a=10..60 p=5..9 b=2..9 q=20..50 w=1000*1..3",
        (
            "A truck may carry {w} kg. It is loaded with {a:sack} of {p} kg and {b:crate} of {q} kg. How many more kilograms may it carry?",
            "{A} loads {a:sack} of {p} kg each and {b:crate} of {q} kg each on a truck for {w} kg. How many kilograms are still free?",
        ),
        (
            "x = a * p | kilogram | Sacks",
            "y = b * q | kilogram | Crates",
            "z = x + y | kilogram | Whole load",
            "r = w - z | kilogram | Kilograms free",
        ),
    ),
)

HELD_OUT: tuple[Template, ...] = (
    Template(
        "fence-gate",
        "l=10..60 b=6..40 g=2..6",
        (
            "A field is {l} m long and {b} m wide. A gate takes {g} m. How many metres of fence are needed for the rest of its border?",
            "{A} fences a yard of {l} m by {b} m and leaves {g} m open for a gate. How many metres of fence does {A.he} need?",
        ),
        (
            "x = l + b | metre | Length and width",
            "p = x * 2 | metre | All around",
            "r = p - g | metre | Without the gate",
        ),
    ),
    Template(
        "cycling-tour",
        "v=10..25 t=2..6 b=20..90 d=50*6..12",
        (
            "{A} cycles {v} km an hour for {t:hour} on the first day and {b} km on the second day. The tour is {d} km long. "
            "How many kilometres are left?",
        ),
        (
            "x = v * t | kilometre | First day",
            "y = x + b | kilometre | Both days",
            "r = d - y | kilometre | Kilometres left",
        ),
    ),
    Template(
        "charity-run",
        "k=3..12 n=2..9 p=2..9",
        (
            "In a run for charity, {k:runner} run {n:lap} each. For every lap the school gets {p:$}. How much money does it get?",
            "A school gets {p:$} for each lap. {k:runner} run {n:lap} each. How much money is that?",
        ),
        ("x = k * n | lap | Laps in all", "y = x * p | dollar | Money"),
    ),
)
