"""Situations of `wordmath` about prices, wages and savings.

See `template` for the language they are written in.
"""

# ruff: noqa: E501 - one wording a line reads better than wrapped ones

from __future__ import annotations

from unmask.tasks.wordmath.template import Template

TEMPLATES: tuple[Template, ...] = (
    Template(
        "shop-two-items",
        "a=2..9 p=2..25 b=2..9 q=2..25",
        (
            "{A} [buys|picks up] {a:item} at {p:$} each and {b:other} at {q:$} each. How much does {A.he} pay [in total|altogether]?",
            "At the [shop|market|store], {item} cost {p:$} each and {other} cost {q:$} each. "
            "{A} takes {a:item} and {b:other}. [What is the total price?|How much must {A.he} pay?]",
            "How much does {A} spend if {A.he} buys {a:item} for {p:$} each and {b:other} for {q:$} each?",
        ),
        (
            "x = a * p | dollar | Cost of the {item}",
            "y = b * q | dollar | Cost of the {other}",
            "t = x + y | dollar | Total",
        ),
        "item=stationery other=clothes",
        (
            "{A} needs {a:item} and {b:other}. One {item:one} costs {p:$}, one {other:one} costs {q:$}. What does everything cost?",
        ),
    ),
    Template(
        "shop-change",
        "a=2..9 p=2..12 m=50*2..6",
        (
            "{A} buys {a:item} for {p:$} each and pays with {m:$}. How much change does {A.he} get?",
            "{item:an} costs {p:$}. {A} [buys|takes] {a:item} and [gives the seller|hands over] {m:$}. "
            "How much money does {A.he} get back?",
            "{A} has {m:$}. {A.He} buys {a:item} that cost {p:$} each. How much money does {A.he} have left?",
        ),
        ("x = a * p | dollar | Cost of the {item}", "c = m - x | dollar | Money left"),
        "item=clothes",
        ("From {A.his} {m:$}, {A} pays for {a:item} at {p:$} each. How many dollars remain?",),
    ),
    Template(
        "shop-two-items-change",
        "a=2..9 p=2..12 b=2..9 q=2..12 m=50*4..10",
        (
            "{A} buys {a:item} at {p:$} each and {b:other} at {q:$} each. {A.He} pays with {m:$}. How much change does {A.he} [get|receive]?",
            "{A} goes to the [shop|market] with {m:$}. {A.He} buys {a:item} for {p:$} each, then {b:other} for {q:$} each. "
            "How much money does {A.he} have left?",
            "One {item:one} costs {p:$} and one {other:one} costs {q:$}. How much of {A.his} {m:$} does {A} keep after buying "
            "{a:item} and {b:other}?",
        ),
        (
            "x = a * p | dollar | Cost of the {item}",
            "y = b * q | dollar | Cost of the {other}",
            "t = x + y | dollar | Total",
            "c = m - t | dollar | Money left",
        ),
        "item=fruit other=flower",
    ),
    Template(
        "discount-each",
        "p=12..60 d=2..10 a=2..9",
        (
            "{item:an} [normally|usually] costs {p:$}, but today it is {d:$} cheaper. {A} buys {a:item}. How much does {A.he} pay?",
            "A shop [takes {d:$} off|lowers by {d:$}] the price of every {item:one}. One {item:one} cost {p:$} before. "
            "What do {a:item} cost now?",
            "{A} buys {a:item}. Each costs {p:$}, and {A.he} gets {d:$} off each one. How much does {A.he} pay [in total|altogether]?",
        ),
        ("q = p - d | dollar | Price of one {item:one}", "t = q * a | dollar | Total"),
        "item=clothes",
        (
            "The old price of {item:an} was {p:$}; the new price is {d:$} lower. How many dollars does {A} need for {a:item}?",
        ),
    ),
    Template(
        "coupon",
        "a=2..9 p=5..40 c=2..10",
        (
            "{A} buys {a:item} for {p:$} each and [uses|has] a coupon that takes {c:$} off the bill. How much does {A.he} pay?",
            "{A} puts {a:item} in {A.his} basket. Each costs {p:$}. With a coupon {A.he} saves {c:$} on the total. What does {A.he} pay?",
            "A {c:$} coupon is used on a bill for {a:item} at {p:$} each. How much is left to pay?",
        ),
        ("x = a * p | dollar | Cost of the {item}", "y = x - c | dollar | After the coupon"),
        "item=game",
    ),
    Template(
        "save-weekly",
        "w=5..30 n=3..9 s=10..400",
        (
            "{A} has {s:$} and saves {w:$} [each|every|a] week. How much money does {A.he} have after {n:week}?",
            "{A} saves {w:$} a week for {n:week}. {A.He} had {s:$} [before|at the start]. How much does {A.he} have now?",
            "How much money will {A} have in {n:week} if {A.he} has {s:$} today and puts aside {w:$} [each|every] week?",
        ),
        ("x = w * n | dollar | Saved in {n:week}", "t = s + x | dollar | All money"),
        held=(
            "Starting with {s:$}, {A} adds {w:$} to {A.his} savings week after week. How much is there after {n:week}?",
        ),
    ),
    Template(
        "save-goal",
        "w=5..25 _n=w*2..9 s=10..99 c=s+_n",
        (
            "{A} wants to buy {item:an} that costs {c:$}. {A.He} has {s:$} and saves {w:$} a week. "
            "[How many weeks must {A.he} save?|In how many weeks can {A.he} buy it?]",
            "{item:an} costs {c:$}. {A} already has {s:$}. If {A.he} saves {w:$} [each|every] week, how many weeks does {A.he} need?",
            "{A} has saved {s:$} for {item:an} and saves {w:$} more every week. How many weeks are left if the {item:one} costs {c:$}?",
        ),
        ("m = c - s | dollar | Money missing", "n = m / w | week | Weeks needed"),
        "item=goal",
        (
            "For {item:an} at {c:$}, {A} has put aside {s:$} so far. {A.He} adds {w:$} a week. How many more weeks does that take?",
        ),
    ),
    Template(
        "wage-days",
        "w=6..15 h=2..8 d=2..6",
        (
            "{A} earns {w:$} an hour and works {h:hour} a day. How much does {A.he} earn in {d:day}?",
            "{A} works {h:hour} a day for {d:day}. {A.He} [earns|is paid] {w:$} an hour. How much money does {A.he} earn?",
            "How much does {A} earn in {d:day} if {A.he} works {h:hour} each day for {w:$} an hour?",
        ),
        ("x = w * h | dollar | Pay for one day", "t = x * d | dollar | Pay for {d:day}"),
    ),
    Template(
        "wage-overtime",
        "h=20..40 w=5..9 o=2..9 v=10..20",
        (
            "{A} works {h:hour} at {w:$} an hour and {o:hour} of overtime at {v:$} an hour. How much does {A.he} earn [in total|altogether]?",
            "{A}'s normal pay is {w:$} an hour, and an hour of overtime pays {v:$}. "
            "This week {A.he} worked {h:hour} and another {o:hour} of overtime. What is {A.his} pay?",
            "This week {A} worked {h:hour} for {w:$} each, then {o:hour} of overtime for {v:$} each. How much did {A.he} earn?",
        ),
        (
            "x = h * w | dollar | Normal pay",
            "y = o * v | dollar | Overtime pay",
            "t = x + y | dollar | Total",
        ),
    ),
    Template(
        "lemonade-profit",
        "n=12..90 p=2..6 c=5..40",
        (
            "{A} sells {n:cup} of lemonade at {p:$} each. The lemons and sugar cost {A.him} {c:$}. What is {A.his} profit?",
            "{A} spends {c:$} on lemons and sells {n:cup} of lemonade for {p:$} each. How much [money does {A.he} earn|profit does {A.he} make]?",
            "What profit does {A} make if {A.he} buys lemons for {c:$} and sells {n:cup} of lemonade at {p:$} a cup?",
        ),
        ("x = n * p | dollar | Money from sales", "y = x - c | dollar | Profit"),
        held=("A stand sold {n:cup} of lemonade for {p:$} each; its costs were {c:$}. How much money was gained?",),
    ),
    Template(
        "split-bill",
        "k=2..6 _b=k*8..40 b=10..40 t=2..20 _s=b+t a=_b-_s",
        (
            "Dinner costs {a:$} for food and {b:$} for drinks. The {k:friend} add a tip of {t:$} and share the bill equally. "
            "How much does each pay?",
            "{k:friend} [eat out|have dinner] together. The food is {a:$}, the drinks are {b:$} and the tip is {t:$}. "
            "They split the bill equally. [What does each friend pay?|How much is it for each?]",
            "{A} and {A.his} friends are {k:person} in all. They pay {a:$} for food, {b:$} for drinks and {t:$} as a tip. "
            "If all pay the same, how much does each pay?",
        ),
        (
            "x = a + b | dollar | Food and drinks",
            "y = x + t | dollar | With the tip",
            "z = y / k | dollar | Each pays",
        ),
    ),
    Template(
        "tickets-parking",
        "a=2..6 p=8..25 c=2..8 q=3..12 s=3..20",
        (
            "A [zoo|museum|cinema] ticket costs {p:$} for an adult and {q:$} for a child. A group of {a:adult} and {c:child} goes there "
            "and pays {s:$} for parking. How much does the group pay [in total|altogether]?",
            "{a:adult} and {c:child} visit a [zoo|museum|park]. Adults pay {p:$} each, children {q:$} each, and parking costs {s:$}. "
            "What does the visit cost?",
            "Parking at the [zoo|fair|museum] costs {s:$}. Tickets are {p:$} for adults and {q:$} for children. "
            "What do {a:adult} and {c:child} pay in one car?",
        ),
        (
            "x = a * p | dollar | Tickets for adults",
            "y = c * q | dollar | Tickets for children",
            "z = x + y | dollar | All tickets",
            "t = z + s | dollar | With parking",
        ),
    ),
    Template(
        "phone-plan",
        "p=10..45 m=3..9 f=10..90",
        (
            "A phone plan costs {p:$} a month plus a fee of {f:$} at the start. What does it cost for {m:month}?",
            "{A} pays a fee of {f:$} to join a [gym|club|library] and then {p:$} a month. How much does {A.he} pay for {m:month}?",
            "How much does {A} pay in {m:month} for a plan of {p:$} a month with a first fee of {f:$}?",
        ),
        ("x = p * m | dollar | Cost of {m:month}", "t = x + f | dollar | With the fee"),
    ),
    Template(
        "compare-savings",
        "_d=1..10 b=5..20 a=b+_d n=3..9",
        (
            "{A} saves {a:$} a week and {B} saves {b:$} a week. How much more does {A} have than {B} after {n:week}?",
            "Every week {A} saves {a:$} while {B} saves {b:$}. After {n:week}, by how many dollars is {A} ahead?",
            "{A} puts aside {a:$} [each|every] week, {B} only {b:$}. What is the difference between their savings after {n:week}?",
        ),
        (
            "x = a * n | dollar | {A}'s savings",
            "y = b * n | dollar | {B}'s savings",
            "d = x - y | dollar | Difference",
        ),
    ),
    Template(
        "half-price",
        "p=2*5..40 n=2..9 c=2..9",
        (
            "{item:an} that cost {p:$} is now half price. {A} buys {n:item} and pays {c:$} for delivery. How much does {A.he} pay?",
            "In a sale, everything is half price. {A} buys {n:item} whose old price was {p:$} each. Delivery costs {c:$}. "
            "How much does {A.he} pay [in total|altogether]?",
            "What does {A} pay for {n:item} at half of {p:$} each, if delivery costs {c:$}?",
        ),
        (
            "q = p / 2 | dollar | Half price",
            "x = q * n | dollar | Cost of the {item}",
            "t = x + c | dollar | With delivery",
        ),
        "item=clothes",
        (
            "Delivery is {c:$}, and every {item:one} costs half of its old price of {p:$}. How much must {A} pay for {n:item}?",
        ),
    ),
    Template(
        "bank-notes",
        "a=3..20 b=3..20 s=10..90",
        (
            "{A} has {a:note} of $10 and {b:note} of $5. {A.He} spends {s:$}. How much money is left?",
            "In {A.his} [wallet|box], {A} finds {a} ten-dollar notes and {b} five-dollar notes. "
            "How much does {A.he} have after paying a bill of {s:$}?",
            "{A} saved {a:note} of $10 and {b:note} of $5, then bought a gift for {s:$}. How many dollars does {A.he} still have?",
        ),
        (
            "x = a * 10 | dollar | Notes of $10",
            "y = b * 5 | dollar | Notes of $5",
            "z = x + y | dollar | Together",
            "r = z - s | dollar | Money left",
        ),
    ),
    Template(
        "rent-raise",
        "r=50*6..18 i=10*1..5 n=2..6",
        (
            "{A} pays {r:$} rent a month. The rent goes up by {i:$}. How much does {A.he} pay for {n:month} at the new price?",
            "The rent of {A}'s [flat|shop|studio] rises from {r:$} by {i:$} a month. What is the new rent for {n:month}?",
            "After a raise of {i:$}, how much is {n:month} of rent if one month was {r:$} before?",
        ),
        ("x = r + i | dollar | New rent", "t = x * n | dollar | Rent for {n:month}"),
    ),
    Template(
        "sell-and-buy",
        "a=10..40 p=3..9 b=2..6 q=3..9",
        (
            "{A} sells {a:item} at {p:$} each and spends part of the money on {b:other} at {q:$} each. How much money is left?",
            "{A} [sold|has sold] {a:item} for {p:$} each. Then {A.he} bought {b:other} for {q:$} each. How much does {A.he} have left?",
            "With the money from {a:item} sold at {p:$} each, {A} buys {b:other} at {q:$} each. How many dollars does {A.he} keep?",
        ),
        (
            "x = a * p | dollar | Money from the {item}",
            "y = b * q | dollar | Cost of the {other}",
            "r = x - y | dollar | Money left",
        ),
        "item=fruit other=stationery",
    ),
    Template(
        "donation-goal",
        "k=3..9 c=20..60 t=50..250 g=100*6..15",
        (
            "{k} classes give {c:$} each and the teachers give {t:$} for a new [playground|library|garden]. The goal is {g:$}. "
            "How much is missing?",
            "A school wants to collect {g:$}. Each of its {k} classes brings {c:$} and the teachers bring {t:$}. "
            "How many dollars are still needed?",
            "The goal of a [school|club] is {g:$}. So far, {k} classes gave {c:$} each and the teachers gave {t:$}. How much is missing?",
        ),
        (
            "x = k * c | dollar | From the classes",
            "y = x + t | dollar | With the teachers",
            "m = g - y | dollar | Missing",
        ),
    ),
    Template(
        "party-shopping",
        "a=2..9 p=2..12 b=2..9 q=2..12 c=2..10 k=2..6",
        (
            "{A} and {A.his} friends, {k:person} in all, buy {a:item} at {p:$} each and {b:other} at {q:$} each for a party. "
            "A coupon takes {c:$} off, and they share the cost equally. How much does each pay?",
            "For a party, {k:friend} buy {a:item} for {p:$} each and {b:other} for {q:$} each. They have a coupon of {c:$} and split the "
            "bill equally. What does each friend pay?",
        ),
        (
            "x = a * p | dollar | Cost of the {item}",
            "y = b * q | dollar | Cost of the {other}",
            "t = x + y | dollar | Total",
            "z = t - c | dollar | After the coupon",
            "e = z / k | dollar | Each pays",
        ),
        "item=fruit other=sweet",
    ),
    Template(
        "cost-of-one",
        "n=2..9 _c=n*3..15 m=100*1..3 r=m-_c k=2..9",
        (
            "{A} buys {n:item} with {m:$} and gets {r:$} back. How much do {k:item} cost at this price?",
            "{A} had {m:$}. After buying {n:item} {A.he} has {r:$}. What would {k:item} cost?",
        ),
        (
            "x = m - r | dollar | Cost of {n:item}",
            "p = x / n | dollar | Cost of one {item:one}",
            "t = p * k | dollar | Cost of {k:item}",
        ),
        "item=game",
        ("For {n:item} {A} paid with {m:$} and got {r:$} in change. Find the price of {k:item}.",),
    ),
)

HELD_OUT: tuple[Template, ...] = (
    Template(
        "bakery-day",
        "a=5..20 p=3..9 b=5..20 q=2..9 c=10..60",
        (
            "A baker sells {a} cakes at {p:$} each and {b} pies at {q:$} each. The flour cost {c:$}. How much money remains?",
            "{A} is a baker. The flour for today cost {A.him} {c:$}, and {A.he} sold {a} cakes for {p:$} each and {b} pies "
            "for {q:$} each. What is {A.his} profit?",
        ),
        (
            "x = a * p | dollar | Money from the cakes",
            "y = b * q | dollar | Money from the pies",
            "z = x + y | dollar | Together",
            "r = z - c | dollar | Profit",
        ),
    ),
    Template(
        "painter-pay",
        "w=8..15 h=2..8 d=2..5 c=10..60",
        (
            "{A} paints walls for {w:$} an hour, {h:hour} a day. After {d:day} {A.he} pays {c:$} for paint. How much money does {A.he} keep?",
            "A painter, {A}, is paid {w:$} an hour and works {h:hour} a day for {d:day}. The paint costs {A.him} {c:$}. "
            "How much money is left?",
        ),
        (
            "x = w * h | dollar | Pay for one day",
            "y = x * d | dollar | Pay for {d:day}",
            "r = y - c | dollar | Money left",
        ),
    ),
    Template(
        "gym-discount",
        "p=20..50 d=2..10 m=3..9 f=10..60",
        (
            "A gym costs {p:$} a month. {A} gets {d:$} off each month but pays a fee of {f:$} at the start. What does {A.he} pay for {m:month}?",
        ),
        (
            "q = p - d | dollar | Price of one month",
            "x = q * m | dollar | Cost of {m:month}",
            "t = x + f | dollar | With the fee",
        ),
    ),
)
