"""Further wordings of the situations in `things`, by name; each stands for dozens or hundreds of texts.

See `grammar` for the language and `phrases` for the parts in angle brackets.
"""

# ruff: noqa: E501 - one wording a line reads better than wrapped ones

from __future__ import annotations

MORE: dict[str, tuple[str, ...]] = {
    "boxes-give-away": (
        "{A} <has> <boxes a box b item>. {A.He} <gives-away g item>. // <left item A>",
        "<day>{A} <buys> <boxes a box b item>[. {A.He}| and|. Then {A.he}|. Later {A.he}] <gives-away g item>. // <left item A>",
        "{A} <had> <boxes a box b item>[. {A.He}| and|. Then {A.he}] <gave-away g item>. // <left item A>",
        "{A} has {a:box}. [Each {box:one}|Every {box:one}|Each of them|Each one] [has|holds|contains] {b:item}. {A.He} <gives-away g item>. // <left item A>",
        "There are {b:item} in [each|one|every] {box:one}[. {A}| and {A}] has {a:box}. {A.He} gives {g:item} to [{B}|a friend]. // <left item A>",
        "{A} has <boxes a box b item>. {B} [gets|takes|buys|borrows] {g:item} from {A.him}. // How many {item} [does {A} have left|does {A} still have|does {A} have now|are left]?",
    ),
    "share-equally": (
        "{A} <has> <boxes a box b item>. {A.He} [shares|divides|splits] [them|all {item}|all the {item}|the {item}] equally among {k:child}. // <gets item child>",
        "<day>{A} <buys> <boxes a box b item> and [shares|divides] [them|the {item}|all {item}] equally [among|between] {k:child}. // <gets item child>",
        "{A} has {a:box}. [Each {box:one}|Every {box:one}|Each one] [has|holds|contains] {b:item}. {k:child} share [all the {item}|the {item}] equally. // <gets item child>",
        "There are <boxes a box b item>. {k:child} [share all the {item}|divide the {item} among themselves|get all of them] in equal parts. // <gets item child>",
        "{A} had <boxes a box b item>[. {A.He}| and] gave [all of them|all {item}] to {k:child}, [the same number|equally many] to each. // How many {item} did each child [get|receive]?",
    ),
    "pick-and-pack": (
        "<day>{A} [picks|gathers|collects] {a:item}[. Then {A.he} [picks|gathers]| and then] {b:item} more. {A.He} [eats|gives away|loses|throws away] {c} and [puts|packs] the rest into bags of {k}. // [How many bags [does {A.he} fill|are there|does {A.he} need|does {A.he} get]?|Find the number of bags.]",
        "{A} [has|buys|picks] {a:item}[ and {B}|. {B}] [gives {A.him}|brings {A.him}] {b} more. {A} [eats|loses|gives away|throws away] {c:item} and [puts|packs] the others in bags of {k}. // [How many bags [does {A} fill|are there|does {A} need]?|Find the number of bags.]",
        "{A} [picked|gathered|collected] {a:item} [on Monday|first|on the first day] and {b:item} [on Tuesday|later|on the next day]. {A.He} [ate|lost|gave away] {c:item}. {A.He} put {k} of the rest into each bag. // [How many bags did {A.he} [fill|need]?|Find the number of bags.]",
    ),
    "shelves-lend": (
        "{A} has {s:shelf} with {b:item} [on each|each]. {A.He} <buys> {n} more and [gives away {m}|gives {m} away|sells {m}|lends {m} to a friend|lends {m} to {B}]. // <left item A>",
        "A [library|school|shop|club] has {s:shelf} with {b:item} [on each|each]. It [gets|buys|receives] {n} more {item} and [sells {m:item}|gives {m:item} away|lends {m:item}]. // <now item>",
        "There are {s:shelf} in [a library|a shop|a school|{A}'s house]. [Each shelf|Every shelf|Each one] [has|holds] {b:item}. {n:item} are added and {m:item} are taken [away|out]. // <now item>",
        "{A} had {s:shelf} with {b:item} [on each|each]. {A.He} <bought> {n} more[ and|. Then {A.he}] [gave {m} away|sold {m}|lent {m} to {B}]. // How many {item} does {A.he} have [now|left]?",
    ),
    "eggs-in-boxes": (
        "{A} has {h:bird}. Each {bird:one} lays {e:egg} <per> week. {A.He} [collects|keeps] the eggs for {w:week} and [puts|packs] them in boxes of {k}. // [How many boxes does {A.he} [fill|need]?|How many boxes [are there|is that]?|Find the number of boxes.]",
        "A [farm|farmer] has {h:bird}, and each [lays|of them lays] {e:egg} <per> week. The eggs are put in boxes of {k}. How many boxes are [filled|needed] in {w:week}?",
        "{h:bird} lay {e:egg} each [in a week|per week|a week]. One box holds {k:egg}. How many boxes [do they fill|are needed|can be filled] in {w:week}?",
    ),
    "legs": (
        "{A} [has|sees|counts|feeds|keeps|owns] {a:animal} and {b:bird}. // How many legs [do they have|do the animals have|is that|are there]<total>?",
        "There are {a:animal} and {b:bird} [on a farm|in a field|in a yard|on a meadow|in a barn]. // [How many legs [do they have|are there|do the animals have]<total>?|Find the [total number|number] of legs.|What is the total number of legs?]",
        "A farmer [has|owns|keeps] {a:animal}[ and|. The farmer also has] {b:bird}. // How many legs do [all the|these|the] animals have<total>?",
    ),
    "orchard": (
        "[An orchard has|There are|{A} has] {r:row} of {t:tree}. [Each tree|Every tree|One tree] [gives|fills] {c:basket} of fruit. // <many baskets>",
        "{A} [plants|has|owns] {r:row} of {t:tree} each. [Each tree|Every tree] [gives|fills] {c:basket}. // [How many baskets does {A.he} [get|fill]<total>?|<many baskets>]",
        "There are {t:tree} in [each|every] of {r:row}. From [each|every] tree {A} [picks|gets|fills] {c:basket} of fruit. // [How many baskets does {A.he} [get|fill]<total>?|<many baskets>]",
    ),
    "harvest-left": (
        "{A} has {f:field}. [Each field|Every field|Each of them] gives {b:crate} of {item}. {r:crate} [spoil|go bad|are lost|are bad] and {A.he} sells {s:crate}. // <left crates A>",
        "{A} [harvests|gets|picks] {b:crate} of {item} from each of {f:field}[. {A.He}|, then {A.he}] [throws away {r:crate}|loses {r:crate}|gives away {r:crate}] and sells {s:crate}. // <left crates A>",
        "A farm has {f:field} with {b:crate} of {item} from each. {r:crate} [spoil|are lost|are eaten] and {s:crate} are [sold|sent away]. // <remain crates>",
    ),
    "baking-trays": (
        "{A} bakes {b:tray} of {c:item}[| each]. {A.He} [eats|drops|gives away|keeps] {e} and [shares|divides] the rest equally among {k:friend}. // <gets item friend>",
        "{A} [baked|made] {b:tray} with {c:item} [each|on each]. {A.His} family ate [{e} of them|{e:item}]. The rest went into {k} boxes, [the same number in each|equally many in each]. // [How many {item} [are|were] in [each|one] box?|Find the number of {item} in each box.]",
        "There are {b:tray} with {c:item} [each|on each]. {e:item} are [eaten|sold|burnt|given away], and {k:child} share the [rest|others] equally. // <gets item child>",
    ),
    "flour-left": (
        "{A} has {t:gram} of [flour|sugar|butter]. [Each cake|Every cake|One cake] needs {g:gram}. {A.He} [bakes|makes] {n:cake}. // [How many grams [are left|remain|does {A.he} have left]?|How much is left, in grams?|Find how many grams are left.]",
        "{A} [bakes|makes] {n:cake} and uses {g:gram} of [flour|sugar|butter] for [each|each one|every cake]. {A.He} [had|started with] {t:gram}. // How many grams [are left|remain|does {A.he} have left]?",
        "There are {t:gram} of [flour|sugar|butter] in [a bag|a jar|the kitchen]. {A} [takes|uses|needs] {g:gram} for [each|every] cake and [bakes|makes] {n:cake}. // How many grams [are left|remain|are still there]?",
    ),
    "eggs-to-buy": (
        "{A} [wants|needs|plans] to [bake|make] {n:cake}. [Each cake|Every cake|One cake] needs {e:egg}. {A.He} has {h:egg} and buys the [rest|missing eggs] [at|for] {p:$} each. // [How much [money |]does {A.he} [pay|spend|need]?|How much must {A.he} pay?|<find the cost>]",
        "{A} has {h:egg}. {A.He} needs {e} for [each|every] cake and [bakes|makes] {n:cake}. The missing eggs cost {p:$} [each|apiece]. // [How much [money |]does {A.he} [pay|spend|need]?|How much must {A.he} pay?]",
        "A [recipe|cake] needs {e:egg}. For {n} [of these|of them], {A} has only {h:egg}. One egg costs {p:$}. How much [does {A.he} pay for the missing eggs|do the missing eggs cost]?",
    ),
    "times-as-many": (
        "{A} <has> {a:item}[. {B}| and {B}] <has> {k} times as many. Together they [give away|lose|sell] {g:item}. // [How many {item} do they have [left|now|together now]?|<remain item>]",
        "{A} has {a:item} and {B} has {k} times [as many|that number|as many {item}]. They [give {g:item} away|give {g:item} to {C}|sell {g:item}|lose {g:item}]. // [How many {item} do they have [left|now]?|How many {item} are left?]",
        "{A} [found {a:item}. {B} found|collected {a:item}. {B} collected|bought {a:item}. {B} bought|had {a:item}. {B} had] {k} times as many. Then they [gave away|lost|sold] {g:item}. // [How many {item} do they have [left|now]?|<remain item>]",
    ),
    "three-people": (
        "{A} <has> {a:item}[. | and ]{B} <has> {d} more {item} than {A}. {C} <has> {k} times as many {item} as {B}. // [How many {item} do [they|the three|all three] have<total>?|Find the total number of {item}.|What is the total number of {item}?]",
        "{A} [found {a:item}. {B} found {d} more than {A}, and {C} found {k} times as many as {B}. How many did they find|collects {a:item}. {B} collects {d} more than {A}, and {C} collects {k} times as many as {B}. How many {item} do they collect|buys {a:item}. {B} buys {d} more than {A}, and {C} buys {k} times as many as {B}. How many {item} do they buy]<total>?",
        "{C} has {k} times as many {item} as {B}[. | and ]{B} has {d} more than {A}. {A} has {a:item}. // [How many {item} do [they|all three] have<total>?|Find the total number of {item}.]",
    ),
    "packs-and-friends": (
        "{A} <has> {a:item}. {A.He} <buys> [{b:pack} of {c:item}|{b:pack} with {c:item} each|{b} more packs of {c:item}] and gives {d:item} to [each of {k:friend}|each of {A.his} {k:friend}|every one of {k:friend}]. // <left item A>",
        "{A} <had> {a:item}. {A.He} <bought> {b:pack} [of {c:item}|with {c} in each|with {c:item} each]. Then {A.he} gave {d:item} to each of {k:friend}. // <left item A>",
        "{A} has {a:item} and [gets|buys] {b:pack} [of {c:item}|with {c:item} each]. {k:friend} [get|take|receive] {d} each from {A.him}. // <left item A>",
    ),
    "class-teams": (
        "There are {c} classes [of|with] {s} students each. [They|The students|All the students] [form|make|are put into] teams of {k}. // <many teams>",
        "A school has {c} classes [of|with] {s} students each. [Each team has|Every team needs] {k} students. // [How many teams can [they|the school] [make|form]?|<many teams>]",
        "{c} classes [play a game|have a sports day|go to a match]. [Each class|Every class] has {s} students, and [{k} students|{k} of them] [form|make] a team. // <many teams>",
    ),
    "theatre-seats": (
        "A [theatre|cinema|hall|circus] has {r:row} [of|with] {s:seat}[| each]. {n:seat} are [sold|taken|full]. [The others|All other seats|The free seats] cost {p:$} each. // [How much do the [free|other] seats cost<total>?|<find the price of all free seats>]",
        "There are {r:row} of {s:seat} in a [theatre|cinema|hall]. {n:seat} are [not free|taken|sold]. [A free seat costs|One free seat costs|Each free seat costs] {p:$}. // [How much do [all |]the free seats cost<total>?|<find the price of all free seats>]",
        "A [show|concert|film] has {r:row} with {s:seat} each. {n:seat} are taken[ and|, and] each free seat is sold for {p:$}. // [How much money do the free seats bring<total>?|How many dollars do the free seats bring?]",
    ),
    "bus-stops": (
        "There are {a:person} on a [bus|train|tram|boat]. At the [first|next] stop {b} get off and {c} get on. [Then|Later|At the next stop|After that] {d} more get on. // [How many [people|passengers] are on board now?|How many [people|passengers] are there now?]",
        "A [bus|train|tram] [starts|leaves] with {a:person}. {b} get off[ and|, then] {c} get on. [Then|Later] {d} more get on. // How many [people|passengers] are [there|on board] [now|in the end]?",
        "{a:passenger} were [on a bus|on a train|on a boat]. {b} got off and {c} got on. [Then|Later] {d} more got on. // How many passengers [are|were] there in the end?",
    ),
    "album": (
        "{A} has an album with {p:page}[. There are {s:item} on each page|, with {s:item} on each page|. Each page has {s:item}]. {A.He} has {r} more in a box and gives {g:item} to {B}. // How many {item} does {A} [have left|have now|still have]?",
        "{A} puts {s:item} on each of {p:page}[ and|. {A.He}] has {r:item} left over. [Then {A.he}|{A.He}] [gives {g} of the {item}|gives {g:item}] to {B}. // How many {item} does {A} [have left|have now|still have]?",
        "{A}'s album has {p:page} [of|with] {s:item}[| each]. There are {r} more in a [box|drawer|bag]. {A.He} <gives-away g item>. // <left item A>",
    ),
    "puzzle": (
        "{A} has a puzzle [of|with] {n:piece}. {A.He} [places|puts in|finds the place of] {a:piece} <per> day for {d:day}. // <remain pieces>",
        "There are {n:piece} in {A}'s puzzle. {A.He} [placed|put in] {a:piece} <per> day for {d:day}. // [<remain pieces>|How many pieces must {A.he} still place?]",
        "{A} [does|starts] a puzzle with {n:piece} and [places|puts in] {a} of them [each|every] day. [How many pieces are left|How many pieces remain|How many are left] after {d:day}?",
    ),
    "reading": (
        "{A} [has|reads] a book [of|with] {n:page}. {A.He} reads {a:page} <per> day for {d:day}. {A.He} [reads|wants to read] the rest in {k:day}, [the same number of pages|equally many pages] each day. // How many pages [a|per] day is that?",
        "{A} reads a book [of|with] {n:page}. [For {d:day} {A.he} reads|In the first {d:day} {A.he} reads] {a:page} <per> day. {A.He} wants to read the rest in {k} more days. // How many pages must {A.he} read [each|per] day [then|for the rest]?",
        "A book has {n:page}. {A} read {a:page} <per> day for {d:day}. {A.He} wants to finish [it|the book] in {k} more days. // How many pages [must|should] {A.he} read [each|every|per] day now?",
    ),
    "parking-lot": (
        "A [parking lot|car park|garage] has {r:row} [of|with] {c:vehicle}[| each]. {a} [leave|drive away|go] and {b} [come|arrive|come in]. // <now vehicle>",
        "There are {r:row} of {c:vehicle} in a [parking lot|garage]. Then {a:vehicle} [leave|drive away] and {b} [new ones |others |]come in. // <now vehicle>",
        "{c:vehicle} [stand|are parked] in each of {r:row}. {a} [drive away|leave][ and|. Then] {b} [others |]arrive. // <now vehicle>",
    ),
    "guests-and-tables": (
        "{a:adult} and {b:child} [are at|come to] a [party|wedding|dinner]. {k} of them sit at each table. [There are|They put] {p} candles on each table. // How many candles are [there|needed]<total>?",
        "A [party|wedding|dinner] has {a:adult} and {b:child} as guests. [Each table|Every table|One table] [seats|is for] {k} guests and [gets|has|needs] {p} bottles of [water|juice]. // How many bottles [are there|are needed|is that]<total>?",
        "There are {a:adult} and {b:child} at a [party|feast|picnic]. They sit at tables of {k}[ and|, and] each table [gets|has] {p} [bowls of soup|bowls of salad]. // How many bowls [are there|are needed|is that]<total>?",
    ),
}
