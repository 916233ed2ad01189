"""Situations of `wordmath` about collections, sharing, farms, kitchens and crowds.

See `template` for the language.
"""

# ruff: noqa: E501 - one wording a line reads better than wrapped ones

from __future__ import annotations

from unmask.tasks.wordmath.template import Template

TEMPLATES: tuple[Template, ...] = (
    Template(
        "boxes-give-away",
        "a=2..9 b=6..30 g=3..40",
        (
            "{A} has {a:box} with {b:item} each. {A.He} gives {g:item} to {B}. How many {item} does {A.he} have left?",
            "There are {b:item} in each {box:one}. {A} [buys|owns] {a:box} and gives away {g:item}. How many {item} are left?",
            "{A} gets {a:box} of {b:item} each and gives {g} of them to {A.his} [friends|cousins]. How many {item} does {A.he} keep?",
        ),
        ("x = a * b | item | {item:Many} in the {box}", "r = x - g | item | {item:Many} left"),
        "box=box item=toy",
        ("After giving {g:item} away, how many {item} remain to {A} from {a:box} that held {b:item} each?",),
    ),
    Template(
        "share-equally",
        "a=2..9 b=4..24 k=2..9",
        (
            "{A} has {a:box} of {b:item} each and shares them equally among {k:child}. How many {item} does each child get?",
            "{k:child} share {a:box} equally. Each {box:one} holds {b:item}. How many {item} [does each child get|are there for each child]?",
            "{A} opens {a:box} with {b:item} in each and gives the same number to each of {k:child}. How many {item} does one child get?",
        ),
        ("x = a * b | item | {item:Many} in the {box}", "e = x / k | item | {item:Many} for each child"),
        "box=box item=sweet",
        ("How many {item} does each of {k:child} receive when {a:box} of {b:item} each are shared equally?",),
    ),
    Template(
        "pick-and-pack",
        "k=4..12 _t=k*4..12 c=2..20 s=_t+c b=10..60 a=s-b",
        (
            "{A} picks {a:item} on [Monday|Friday] and {b:item} on Saturday. {A.He} eats {c:item} and packs the rest into bags of {k}. "
            "How many bags does {A.he} fill?",
            "{A} picked {a:item} in the morning and {b:item} in the [afternoon|evening]. {c} of them were bad. "
            "The rest went into bags of {k}. How many bags were filled?",
            "From {a:item} of the first day and {b:item} of the second day, {A} gives away {c}. The others are packed in bags of {k}. "
            "How many bags are there?",
        ),
        (
            "x = a + b | item | {item:Many} in all",
            "y = x - c | item | {item:Many} to pack",
            "n = y / k | bag | Bags",
        ),
        "item=fruit",
    ),
    Template(
        "shelves-lend",
        "s=3..9 b=12..60 n=5..60 m=5..60",
        (
            "A library has {s:shelf} with {b:item} each. It buys {n} new {item} and lends out {m}. How many {item} are in the library now?",
            "There are {b:item} on each of the {s:shelf} in {A}'s room. {A.He} gets {n} more and lends {m} to {B}. "
            "How many {item} does {A.he} have [now|at home]?",
            "{A} has {s:shelf} of {b:item} each. {A.He} buys {n:item} and then gives {m:item} away. How many {item} are left?",
        ),
        (
            "x = s * b | item | {item:Many} on the shelves",
            "y = x + n | item | With the new ones",
            "r = y - m | item | {item:Many} left",
        ),
        "item=book",
    ),
    Template(
        "eggs-in-boxes",
        "h=4..20 e=3..6 w=2..6 k=2*3..6",
        (
            "{A} has {h:bird}. Each lays {e:egg} a week. The eggs of {w:week} are packed in boxes of {k}. How many boxes are filled?",
            "Each of {A}'s {h:bird} lays {e:egg} a week. {A.He} collects the eggs for {w:week} and packs {k} in a box. "
            "How many boxes does {A.he} need?",
            "{h:bird} lay {e:egg} each [every|a] week. How many boxes of {k:egg} do they fill in {w:week}?",
        ),
        (
            "x = h * e | egg | Eggs in one week",
            "y = x * w | egg | Eggs in {w:week}",
            "n = y / k | box | Boxes",
        ),
        "bird=bird",
    ),
    Template(
        "legs",
        "a=3..60 b=3..60",
        (
            "{A} has {a:animal} and {b:bird}. How many legs do they have [in total|altogether]?",
            "On a farm there are {b:bird} and {a:animal}. How many legs are there on the farm?",
            "How many legs do {a:animal} and {b:bird} have [together|in all]?",
        ),
        (
            "x = a * 4 | leg | Legs of the {animal}",
            "y = b * 2 | leg | Legs of the {bird}",
            "t = x + y | leg | All legs",
        ),
        "animal=animal bird=bird",
        ("Counting four legs for each of {a:animal} and two legs for each of {b:bird}, how many legs does {A} count?",),
    ),
    Template(
        "orchard",
        "r=3..12 t=3..9 c=3..9",
        (
            "An orchard has {r:row} of {t:tree}. Each tree gives {c:basket} of fruit. How many baskets are there?",
            "{A} planted {r:row} with {t:tree} in each. Every tree gives {c:basket} of fruit. How many baskets does {A.he} fill?",
            "How many baskets of fruit come from {r:row} of {t:tree} each, if one tree fills {c:basket}?",
        ),
        ("x = r * t | tree | {tree:Many} in all", "y = x * c | basket | Baskets"),
        "tree=tree",
    ),
    Template(
        "harvest-left",
        "f=3..9 b=15..60 r=5..40 s=20..90",
        (
            "{A} harvests {b} crates of {item} from each of {f:field}. {r:crate} spoil and {s:crate} are sold. How many crates are left?",
            "Each of {A}'s {f:field} gives {b:crate} of {item}. {A.He} loses {r:crate} and sells {s:crate}. "
            "How many crates does {A.he} still have?",
            "From {f:field} {A} brings in {b:crate} of {item} each. After {r:crate} are thrown away and {s:crate} are sold, how many remain?",
        ),
        (
            "x = f * b | crate | Crates harvested",
            "y = x - r | crate | Good crates",
            "z = y - s | crate | Crates left",
        ),
        "item=vegetable",
    ),
    Template(
        "baking-trays",
        "b=3..9 c=6..24 e=2..20 k=2..9",
        (
            "{A} bakes {b:tray} of {c:item}. The family eats {e:item}. {A.He} puts the rest into {k} equal boxes. "
            "How many {item} are in each box?",
            "A baker makes {b:tray} with {c:item} each, drops {e} of them, and divides the others equally between {k:shop}. "
            "How many {item} does each shop get?",
            "{b:tray} of {c:item} each come out of the oven. {e} are eaten at once, and {k:friend} share the rest equally. "
            "How many {item} does each friend get?",
        ),
        (
            "x = b * c | item | {item:Many} baked",
            "y = x - e | item | {item:Many} left",
            "z = y / k | item | {item:Many} in each part",
        ),
        "item=baked",
    ),
    Template(
        "flour-left",
        "g=50*2..9 n=2..8 t=500*3..10",
        (
            "One cake needs {g:gram} of [flour|sugar|butter]. {A} has {t:gram} and bakes {n:cake}. How many grams are left?",
            "{A} has {t:gram} of [flour|sugar|butter] and uses {g:gram} for each of {n:cake}. How many grams does {A.he} have left?",
            "How much of {t:gram} of [flour|sugar|butter] remains after {A} has baked {n:cake} that need {g:gram} each?",
        ),
        ("x = g * n | gram | Used for {n:cake}", "r = t - x | gram | Grams left"),
        held=(
            "{A} bakes {n:cake} with {g:gram} of flour in each, from a sack of {t:gram}. How many grams stay in the sack?",
        ),
    ),
    Template(
        "eggs-to-buy",
        "n=4..12 e=2..6 h=3..20 p=2..5",
        (
            "Each cake needs {e:egg}. {A} wants to bake {n:cake} and has {h:egg}. One egg costs {p:$}. How much must {A.he} pay for the missing eggs?",
            "{A} has {h:egg} and wants to bake {n:cake} with {e:egg} each. If an egg costs {p:$}, what do the missing eggs cost?",
        ),
        (
            "x = n * e | egg | Eggs needed",
            "y = x - h | egg | Eggs missing",
            "c = y * p | dollar | Cost",
        ),
        held=(
            "For {n:cake} of {e:egg} each, {A} must buy what is missing beside {A.his} {h:egg}, at {p:$} an egg. What does {A.he} pay?",
        ),
    ),
    Template(
        "times-as-many",
        "a=5..99 k=2..6 g=2..40",
        (
            "{A} has {a:item}. {B} has {k} times as many. Together they give away {g:item}. How many {item} do they have left?",
            "{B} has {k} times as many {item} as {A}, who has {a}. After they lose {g:item}, how many {item} do they have [together|in all]?",
            "{A} collected {a:item} and {B} collected {k} times as many. They give {g} of all their {item} to {C}. How many are left?",
        ),
        (
            "x = a * k | item | {B}'s {item}",
            "y = a + x | item | {item:Many} together",
            "z = y - g | item | {item:Many} left",
        ),
        "item=toy",
    ),
    Template(
        "three-people",
        "a=5..60 d=2..30 k=2..5",
        (
            "{A} has {a:item}. {B} has {d} more than {A}. {C} has {k} times as many as {B}. How many {item} do they have [in total|altogether]?",
            "{B} owns {d} more {item} than {A}, and {C} owns {k} times as many {item} as {B}. {A} owns {a}. "
            "How many {item} do all three own?",
        ),
        (
            "x = a + d | item | {B}'s {item}",
            "y = x * k | item | {C}'s {item}",
            "z = a + x | item | {A} and {B} together",
            "t = z + y | item | All three",
        ),
        "item=toy",
        (
            "All three count their {item}: {A} has {a}, {B} has {d} more than {A}, and {C} has {k} times as many as {B}. How many are there?",
        ),
    ),
    Template(
        "packs-and-friends",
        "a=10..90 b=2..9 c=5..20 d=2..9 k=2..9",
        (
            "{A} has {a:item}. {A.He} buys {b:pack} of {c:item} and gives {d:item} to each of {k:friend}. How many {item} are left?",
            "{A} gets {b:pack} with {c:item} each. {A.He} already had {a:item}. Then {k:friend} get {d:item} each. "
            "How many {item} does {A.he} have now?",
        ),
        (
            "x = b * c | item | {item:Many} in the packs",
            "y = a + x | item | {item:Many} in all",
            "z = d * k | item | Given away",
            "r = y - z | item | {item:Many} left",
        ),
        "item=toy",
        (
            "How many {item} does {A} keep if {A.he} has {a}, buys {b:pack} of {c}, and hands {d} to each of {k:friend}?",
        ),
    ),
    Template(
        "class-teams",
        "c=2..9 s=12..30 k=3..9",
        (
            "{c} classes of {s} students form teams of {k}. How many teams are there?",
            "A school sends {c} classes with {s} students each to a sports day. The students form teams of {k}. How many teams are there?",
            "How many teams of {k} can be made from {c} classes that have {s} students each?",
        ),
        ("x = c * s | student | Students", "y = x / k | team | Teams"),
    ),
    Template(
        "theatre-seats",
        "r=5..30 s=5..9 n=10..90 p=2..9",
        (
            "A [theatre|cinema|hall] has {r:row} of {s:seat}. {n:seat} are taken. How much money do the free seats bring at {p:$} each?",
            "There are {r:row} with {s:seat} each in a [theatre|cinema|hall], and {n:seat} are already sold. "
            "What do all other seats cost at {p:$} each?",
        ),
        (
            "x = r * s | seat | Seats in all",
            "y = x - n | seat | Free seats",
            "t = y * p | dollar | Price of the free seats",
        ),
    ),
    Template(
        "bus-stops",
        "a=20..60 b=2..19 c=2..20 d=2..20",
        (
            "A [bus|train|tram] has {a:passenger}. At the first stop {b} get off and {c} get on. At the next stop {d} get on. "
            "How many passengers are there now?",
            "{a:person} are on a [bus|train|boat]. First {b} leave and {c} get on, then {d} more get on. How many passengers are on it now?",
        ),
        (
            "x = a - b | passenger | After {b} got off",
            "y = x + c | passenger | After {c} got on",
            "z = y + d | passenger | After {d} more got on",
        ),
        held=(
            "How many passengers are in a tram that starts with {a}, loses {b}, takes {c} and later takes another {d}?",
        ),
    ),
    Template(
        "album",
        "p=5..40 s=4..9 r=2..30 g=2..30",
        (
            "{A} fills {p:page} of an album with {s:item} each and has {r:item} left over. {A.He} gives {g:item} to {B}. "
            "How many {item} does {A.he} have now?",
            "There are {s:item} on each of {p:page} in {A}'s album, and {r} more in a drawer. {A.He} gives {g} to {B}. How many are left?",
        ),
        (
            "x = p * s | item | {item:Many} in the album",
            "y = x + r | item | {item:Many} in all",
            "z = y - g | item | {item:Many} left",
        ),
        "item=album",
    ),
    Template(
        "puzzle",
        "n=100*2..20 a=12..60 d=2..9",
        (
            "A puzzle has {n:piece}. {A} places {a:piece} a day for {d:day}. How many pieces are left?",
            "{A} works on a puzzle of {n:piece}. In each of {d:day} {A.he} places {a:piece}. How many pieces must {A.he} still place?",
            "After {d:day} at {a:piece} a day, how many of the {n:piece} of {A}'s puzzle are not yet placed?",
        ),
        ("x = a * d | piece | Pieces placed", "r = n - x | piece | Pieces left"),
        held=("{A} has placed {a:piece} on each of {d:day}. The puzzle has {n:piece}. How many are missing?",),
    ),
    Template(
        "reading",
        "a=8..40 d=2..9 k=2..9 n=20*5..30",
        (
            "A book has {n:page}. {A} reads {a:page} a day for {d:day}. {A.He} wants to finish it in {k} more days. "
            "How many pages must {A.he} read each day?",
            "{A} reads {a:page} of a book on each of {d:day}. The book has {n:page}, and {A.he} wants to read the rest in {k:day}. "
            "How many pages a day is that?",
        ),
        (
            "x = a * d | page | Pages read",
            "y = n - x | page | Pages left",
            "z = y / k | page | Pages each day",
        ),
    ),
    Template(
        "parking-lot",
        "r=5..30 c=4..9 a=10..40 b=3..40",
        (
            "A parking lot has {r:row} with room for {c:vehicle} each. It is full. Then {a:vehicle} leave and {b:vehicle} arrive. "
            "How many {vehicle} are there now?",
            "All {r:row} of a parking lot are full, with {c:vehicle} in each. {a} drive away and {b} come in. How many {vehicle} are there now?",
        ),
        (
            "x = r * c | vehicle | {vehicle:Many} at first",
            "y = x - a | vehicle | After {a} left",
            "z = y + b | vehicle | After {b} came",
        ),
        "vehicle=vehicle",
    ),
    Template(
        "guests-and-tables",
        "k=4..8 _g=k*4..20 b=5..30 a=_g-b p=2..9",
        (
            "{a:adult} and {b:child} come to a [party|wedding|feast]. {k} guests sit at each table. "
            "Each table gets {p} [candles|jugs of water|flowers]. How many of them are needed?",
            "A [party|feast] has {a:adult} and {b:child}. There are {k} guests at a table and {p} plates of food on each table. "
            "How many plates are there?",
        ),
        (
            "x = a + b | guest | Guests",
            "y = x / k | table | Tables",
            "z = y * p | piece | On all tables",
        ),
    ),
)

HELD_OUT: tuple[Template, ...] = (
    Template(
        "aquarium",
        "t=3..9 f=12..60 s=5..60 b=5..60",
        (
            "A pet shop keeps {f:pet} in each of {t:room}. It sells {s:pet} and then buys {b:pet}. How many {pet} are in the shop now?",
            "There are {t:room} with {f:pet} each in a pet shop. First {s} are sold, then {b} arrive. How many {pet} are there now?",
        ),
        (
            "x = t * f | pet | {pet:Many} at first",
            "y = x - s | pet | After {s} were sold",
            "z = y + b | pet | After {b} came",
        ),
        "pet=pet",
    ),
    Template(
        "camp-tents",
        "c=2..9 s=12..30 t=2..12 k=2..6",
        (
            "{c} classes of {s} students and {t} teachers go camping. {k} people sleep in one tent. How many tents do they need?",
            "Tents for {k} people are put up for {c} classes with {s} students each and {t} teachers. How many tents are needed?",
        ),
        (
            "x = c * s | student | Students",
            "y = x + t | person | With the teachers",
            "z = y / k | tent | Tents",
        ),
    ),
    Template(
        "fruit-together",
        "a=5..60 k=2..5 n=2..6",
        (
            "{A} picks {a:item} and {B} picks {k} times as many. They share all of them equally among {n:child}. How many {item} does each child get?",
        ),
        (
            "x = a * k | item | {B}'s {item}",
            "y = a + x | item | {item:Many} together",
            "z = y / n | item | {item:Many} for each child",
        ),
        "item=fruit",
    ),
)
