"""Further wordings of the situations in `money`, by name; each stands for dozens or hundreds of texts.

See `grammar` for the language and `phrases` for the parts in angle brackets.
"""

# ruff: noqa: E501 - one wording a line reads better than wrapped ones

from __future__ import annotations

MORE: dict[str, tuple[str, ...]] = {
    "shop-two-items": (
        "<day>{A} <buys> {a:item} <priced p> and {b:other} <priced q>. // <pay A>",
        "{A} <bought> {a:item} [at|for] {p:$} each[. {A.He} also <bought>| and also <bought>|. Then {A.he} <bought>] {b:other} [at|for] {q:$} each. // <paid A>",
        "<price {item:one} p>[. | and ]<price {other:one} q>. {A} [wants|buys|takes|would like to buy] {a:item} and {b:other}. // <pay A>",
        "{a:item} cost {p:$} each and {b:other} cost {q:$} each. <cost>",
        "{A} [pays|spends] {p:$} for each of {a:item} and {q:$} for each of {b:other}. // <pay A>",
    ),
    "shop-change": (
        "{A} [has {m:$}|has {m:$} in cash|goes to the [shop|store|market] with {m:$}][ and|. {A.He}] <buys> {a:item} <at p>. // <money-left A>",
        "<day>{A} <buys> {a:item} <priced p>[. {A.He}| and] [pays with|gives the [cashier|seller]|hands over] {m:$}. // <change A>",
        "{A} had {m:$}[. {A.He}| and] <bought> {a:item} for {p:$} <each>. // <money-left A>",
        "<price {item:one} p>. {A} [has|takes] {m:$}[ and|. {A.He}] <buys> {a:item}. // <money-left A>",
        "{A} pays for {a:item} with {m:$}. <price {item:one} p>. <change A>",
    ),
    "shop-two-items-change": (
        "{A} has {m:$}. {A.He} <buys> {a:item} <at p> and {b:other} <at q>. // <money-left A>",
        "{A} had {m:$}[. {A.He}| and] <bought> {a:item} for {p:$} each and {b:other} for {q:$} each. // <money-left A>",
        "<price {item:one} p>. <price {other:one} q>. {A} <buys> {a:item} and {b:other}[ and|. {A.He}] [pays with|hands over] {m:$}. // <change A>",
        "<day>{A} <buys> {a:item} <priced p>. <then>{A.he} <buys> {b:other} <priced q>. {A.He} [pays with|gives the seller] {m:$}. // <change A>",
    ),
    "discount-each": (
        "{item:an} costs {p:$}. [Now|Today|This week] [the price is {d:$} lower|it is {d:$} cheaper]. {A} <buys> {a:item}. // <pay A>",
        "<price {item:one} p>. {A} gets [a discount of {d:$}|{d:$} off] on [each one|each {item:one}|every {item:one}][ and|. {A.He}] buys {a:item}. // <pay A>",
        "{A} <bought> {a:item}. [The normal price was|They normally cost] {p:$} each, but [each one was|every one was] {d:$} cheaper. // <paid A>",
        "The price of {item:an} [falls|drops|goes down] [from {p:$} by {d:$}|by {d:$}. It was {p:$} before]. [What do|How much do] {a:item} cost now?",
        "A shop sells {item} [at|for] {p:$} each. There is a [discount|price cut] of {d:$} on each {item:one}. {A} [wants|buys] {a:item}. // <pay A>",
    ),
    "coupon": (
        "{A} <buys> {a:item} <priced p>. {A.He} has a coupon [for {c:$}|worth {c:$}|of {c:$}|that takes {c:$} off the total]. // <pay A>",
        "{A} <bought> {a:item} [at|for] {p:$} each[ and|. {A.He}] [used a coupon for {c:$}|got {c:$} off the total|got a discount of {c:$} on the bill]. // <paid A>",
        "<price {item:one} p>. {A} <buys> {a:item} and [gets {c:$} off the bill|uses a {c:$} coupon|saves {c:$} with a coupon]. // <pay A>",
        "{a:item} cost {p:$} each. [With a coupon, the bill is {c:$} lower|A coupon takes {c:$} off the total]. [What does {A} pay|How much does {A} pay|How much must {A} pay]<total>?",
    ),
    "save-weekly": (
        "{A} has {s:$}[. {A.He}| and] [saves|puts aside|adds|earns] {w:$} <per> week[. How much [money |]does {A.he} have after {n:week}?| for {n:week}. How much [money |]does {A.he} have [now|in the end|then]?]",
        "{A} had {s:$}[. {A.He}| and] saved {w:$} <per> week for {n:week}. // [How much [money |]does {A.he} have now?|How much [money |]did {A.he} have in the end?|Find how much money {A.he} has now.]",
        "[For {n:week}, {A}|{A}] [saves {w:$}|puts {w:$} aside|gets {w:$} as pocket money] every week. {A.He} [starts with|already has|has] {s:$}. How much [money |]does {A.he} have after {n:week}?",
        "There is {s:$} in {A}'s [money box|piggy bank|savings box]. {A.He} [puts in|adds] {w:$} <per> week. How much [money |][is in it|is there|does {A.he} have] after {n:week}?",
    ),
    "save-goal": (
        "{A} [wants|would like] [to buy|to get] {item:an} [for {c:$}|that costs {c:$}]. {A.He} [has|already has|has saved] {s:$} and [saves|can save|puts aside] {w:$} <per> week. // <weeks A>",
        "{A} needs {c:$} [to buy|for] {item:an}. {A.He} [has|already has] {s:$}[ and|. {A.He}] [saves|earns|gets] {w:$} <per> week. // <weeks A>",
        "{item:an} costs {c:$}. {A} has {s:$} [and saves|and earns|now and saves] {w:$} <per> week. // <weeks A>",
        "{A} is saving for {item:an}. It costs {c:$}. {A.He} has {s:$} [so far|now|already][ and|. {A.He}] saves {w:$} <per> week. // <weeks A>",
    ),
    "wage-days": (
        "{A} [works|is working] {h:hour} <per> day and [earns|gets|makes|is paid] {w:$} [an|per|each|every] hour. How much [money |]does {A.he} [earn|make|get] in {d:day}?",
        "{A} [earns|gets|makes|is paid] {w:$} [an|per] hour. {A.He} works {h:hour} <per> day for {d:day}. // <earn A>",
        "{A} worked {h:hour} <per> day for {d:day}[ and|. {A.He}] [earned|got|was paid] {w:$} [an|per|for each] hour. // How much [money |]did {A.he} [earn|make|get]<total>?",
        "[A job|{A}'s job] pays {w:$} [an|per] hour. {A} works {d:day}, {h:hour} <per> day. // <earn A>",
    ),
    "wage-overtime": (
        "{A} [earns|gets|makes] {w:$} [an|per] hour and {v:$} [an|per|for each] hour of overtime. {A.He} works {h:hour} and {o:hour} of overtime. // <earn A>",
        "{A} worked {h:hour} for {w:$} an hour[. {A.He} also worked| and] {o:hour} of overtime for {v:$} an hour. // How much [money |]did {A.he} [earn|make|get]<total>?",
        "A normal hour pays {w:$}[ and|.|, while] [an overtime hour pays {v:$}|one hour of overtime pays {v:$}]. {A} works {h:hour} and {o:hour} of overtime. // <earn A>",
        "{A} works {h:hour} and is paid {w:$} for each. {A.He} [also works|then works] {o:hour} of overtime and is paid {v:$} for each. // <earn A>",
    ),
    "lemonade-profit": (
        "{A} sells {n:cup} of lemonade [at|for] {p:$} [each|a cup|per cup]. {A.He} [spends {c:$} on|paid {c:$} for|pays {c:$} for] [lemons|sugar|lemons and sugar|the ingredients]. // [<find {A.his} profit>|How much profit does {A.he} make?|How much money does {A.he} make after costs?]",
        "{A} sold {n:cup} of lemonade. [Each cup|One cup|Every cup] cost {p:$}. {A.He} had spent {c:$} on [lemons|ingredients|sugar and cups]. // [<find {A.his} profit>|How much profit did {A.he} make?]",
        "{A} [spends|pays] {c:$} to make lemonade[ and|. {A.He}] sells {n:cup} [at|for] {p:$} each. // [<find {A.his} profit>|How much profit does {A.he} make?|How much money does {A.he} gain?]",
        "[Lemons and sugar|The ingredients] cost {A} {c:$}. {A.He} makes lemonade and sells {n:cup} at {p:$} [each|a cup]. // [<find {A.his} profit>|How much profit does {A.he} make?]",
    ),
    "split-bill": (
        "{k:friend} [eat|go out|have dinner|have lunch] together. They pay {a:$} for food[, {b:$} for drinks and {t:$} as a tip| and {b:$} for drinks, and they give a tip of {t:$}]. They [share|split|divide] the [bill|cost|total] equally. // <split>",
        "{k:friend} share a bill equally. The food costs {a:$}, the drinks cost {b:$} and the tip is {t:$}. // <split>",
        "At a restaurant, {k:person} [order|have] food for {a:$} and drinks for {b:$}. They [leave|add] a tip of {t:$} and [share|split] the bill equally. // <split>",
        "A dinner for {k:person} costs {a:$} for the food, {b:$} for the drinks and {t:$} for the tip. [Everyone pays the same|All pay the same amount|They share the cost equally]. // <split>",
    ),
    "tickets-parking": (
        "[A ticket|One ticket] costs {p:$} for an adult and {q:$} for a child. {a:adult} and {c:child} [buy tickets|go to the [zoo|museum|circus|pool]] and [pay|also pay] {s:$} for parking. // [How much do they pay<total>?|What do they pay<total>?|<cost>]",
        "{a:adult} and {c:child} go to the [zoo|museum|circus|fair|cinema]. Tickets [cost|are] {p:$} for [adults|each adult|an adult] and {q:$} for [children|each child|a child]. [Parking costs|The parking is|Parking is another] {s:$}. // [How much do they pay<total>?|<cost>]",
        "Adults pay {p:$} <each> and children pay {q:$} <each> [at the zoo|at the pool|in a museum|for a show]. A family of {a:adult} and {c:child} [parks the car for {s:$}|pays {s:$} for parking too]. // [How much does the family pay<total>?|<cost>]",
    ),
    "phone-plan": (
        "{A} [has a phone plan|pays for a phone plan|joins a sports club|joins a music club]. [It costs|The price is] {p:$} <per> month and there is [a first fee|a one-time fee|an entry fee] of {f:$}. How much does {A.he} pay for {m:month}?",
        "A [phone plan|club|streaming plan|data plan] costs {p:$} <per> month. There is also [a one-time fee|a first fee] of {f:$}. [What does it cost|How much does it cost|How much is it|What is the total cost] for {m:month}?",
        "{A} pays {f:$} [once|at the start] and {p:$} <per> month for [a phone|the internet|a phone plan|a dance class]. [How much does {A.he} pay|What does {A.he} pay|How much money does {A.he} spend] in {m:month}?",
    ),
    "compare-savings": (
        "{A} saves {a:$} <per> week[. | and |, and ]{B} saves {b:$} <per> week. [How much more [money |]does {A} have than {B}|How many dollars more than {B} does {A} have|How much more has {A} saved than {B}] after {n:week}?",
        "{A} and {B} both save money for {n:week}. {A} saves {a:$} <per> week and {B} saves {b:$} <per> week. // [How much more does {A} save than {B}?|How much more money does {A} have than {B}?|<find the difference>]",
        "For {n:week}, {A} [saves|earns|gets] {a:$} <per> week, but {B} only {b:$}. // [How much more does {A} have than {B}?|<find the difference>|How many dollars more does {A} have?]",
    ),
    "half-price": (
        "{item:an} costs {p:$}[. Today it is|, but today it is|, but now it is] half price. {A} <buys> {n:item}. Delivery costs {c:$}. // <pay A>",
        "All {item} are [half price|sold at half price]. One {item:one} cost {p:$} before. {A} <buys> {n:item} and pays {c:$} for [delivery|shipping]. // <pay A>",
        "{A} <bought> {n:item} at half price. The [normal|full|old] price was {p:$} <each>. {A.He} [also paid|paid another] {c:$} for [delivery|shipping]. // <paid A>",
        "A shop sells {item} at half [price|the price]. The full price is {p:$} each. {A} [orders|buys] {n:item} with delivery for {c:$}. // <pay A>",
    ),
    "bank-notes": (
        "{A} has {a} ten-dollar [notes|bills] and {b} five-dollar [notes|bills]. {A.He} [spends|pays|gives away] {s:$}. // <money-left A>",
        "{A} [had|saved|got] {a:note} of $10 and {b:note} of $5[. {A.He}| and] [spent {s:$}|spent {s:$} on food|paid {s:$} for a toy|gave {s:$} to {A.his} sister]. // <money-left A>",
        "There are {a:note} of $10 and {b:note} of $5 in {A}'s [wallet|purse|pocket|drawer]. {A.He} [takes out|uses|spends] {s:$}. // <money-left A>",
    ),
    "rent-raise": (
        "{A} pays {r:$} <per> month for [a flat|an apartment|a room|a shop]. The rent [rises|goes up|increases|is raised] by {i:$}. [How much does {A.he} pay|What does {A.he} pay|How much must {A.he} pay] for {n:month} [now|after that|at the new price]?",
        "The rent was {r:$} <per> month. [Now|This year] it is {i:$} [higher|more]. [What do|How much do] {n:month} cost now?",
        "{A}'s rent [goes up|rises|increases] by {i:$} a month. [Before that, it|Before, it] was {r:$} a month. [How much rent does {A.he} pay|How much is the rent|What is the rent] for {n:month} now?",
    ),
    "sell-and-buy": (
        "{A} sells {a:item} [at|for] {p:$} <each>[. Then {A.he}| and then|. {A.He}] <buys> {b:other} [at|for] {q:$} <each>. // <money-left A>",
        "{A} sold {a:item} for {p:$} <each>[ and|. {A.He}|. Later {A.he}] <bought> {b:other} for {q:$} <each>. // <money-left A>",
        "{A} gets {p:$} for [each|every one] of {a:item}. {A.He} [uses some of the money to buy|spends some of the money on] {b:other} at {q:$} each. // <money-left A>",
        "At the market, {A} sells {a:item} <priced p>. With [the|this] money {A.he} <buys> {b:other} <at q>. <money-left A>",
    ),
    "donation-goal": (
        "A school [needs|wants|hopes for] {g:$} for [a new library|a garden|a trip|new computers|a play]. {k} classes give {c:$} each[ and|, and] the teachers give {t:$}. // [How much [money |]is [still |]missing?|How much [money |]is still needed?|How many dollars are [missing|still needed]?|Find how much is missing.]",
        "{k} classes [collect|bring|raise] {c:$} each. The teachers [add|collect|bring] {t:$}. The school [needs|wants] {g:$}[| in total| for a garden| for a trip]. // [How much [money |]is [still |]missing?|How many dollars are [missing|still needed]?]",
        "The goal is {g:$}. Each of {k} classes [gives|collects] {c:$}[ and|, and] the teachers [give|collect] {t:$}. // [How much [money |]is [still |]missing?|How much more money is needed?|How many dollars are missing?]",
    ),
    "party-shopping": (
        "{k:friend} buy {a:item} <at p> and {b:other} <at q>. They [use|have] a coupon for {c:$} and [share|split] the [cost|bill|price] equally. // <split>",
        "{k:friend} [plan|have|give] a party. They buy {a:item} for {p:$} each and {b:other} for {q:$} each. [A coupon takes {c:$} off|They get {c:$} off with a coupon]. They [share|split] the [cost|bill] equally. // <split>",
        "{k:person} share the cost of a [party|picnic] equally. They buy {a:item} at {p:$} <each> and {b:other} at {q:$} <each>, and [a coupon saves them {c:$}|get a discount of {c:$}|they get {c:$} off]. // <split>",
    ),
    "cost-of-one": (
        "{A} [buys|gets|takes] {n:item}, [pays with {m:$} and gets {r:$} back|gives the seller {m:$} and gets {r:$} back]. [How much do|What do] {k:item} cost?",
        "{A} [buys|takes|picks up] {n:item} that all cost the same[ and|. {A.He}] [pays with|hands over|gives the cashier] {m:$}. {A.He} gets {r:$} [back|in change]. [How much do|What do|What would|How much would] {k:item} cost?",
        "{A} has {m:$}. {A.He} buys {n:item} and has {r:$} left. [How much do|What do|How much would|What would] {k:item} cost?",
        "{A} had {m:$} and has {r:$} left after buying {n:item}. All {item} cost the same. [How much do|What do] {k:item} cost?",
        "{A} [paid|gave the seller] {m:$} [for {n:item} and got {r:$} back|for {n:item}. {A.He} got {r:$} in change]. [How much money does {A.he} need|How much does {A.he} pay] for {k:item} [at the same price|at this price]?",
    ),
}
