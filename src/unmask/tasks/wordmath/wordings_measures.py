"""Further wordings of the situations in `measures`, by name; each stands for dozens or hundreds of texts.

See `grammar` for the language and `phrases` for the parts in angle brackets.
"""

# ruff: noqa: E501 - one wording a line reads better than wrapped ones

from __future__ import annotations

MORE: dict[str, tuple[str, ...]] = {
    "two-legs": (
        "{A} [drives|rides|travels] {t:hour} at {v} km [an|per] hour[ and|. Then {A.he} [drives|travels]|, then] {s:hour} at {w} km [an|per] hour. // <far A>",
        "<day>{A} [drives|travels] for {t:hour} at a speed of {v} km [an|per] hour[ and then|. After that {A.he} drives] for {s:hour} at {w} km [an|per] hour. // <far A>",
        "{A} drove for {t:hour} at {v} km an hour and [then |]for {s:hour} at {w} km an hour. // [How far did {A.he} [go|drive|travel]<total>?|How many kilometres did {A.he} [go|drive|travel]<total>?|<find the whole distance>]",
    ),
    "trip-remaining": (
        "A [trip|journey|road] is {d} km long. {A} drives for {t:hour} at {v} km [an|per] hour. // <km-left A>",
        "{A} [has to drive|must drive|wants to drive|is on a trip of] {d} km. {A.He} drives {v} km [an|per|each] hour for {t:hour}. // <km-left A>",
        "{A} [drives|travels|goes] {v} km [an|per|every] hour. The [way|trip|journey] is {d} km. [How many kilometres are left|How far is it still|How many kilometres remain] after {t:hour}?",
    ),
    "fuel-range": (
        "{A}'s {vehicle:one} [goes|drives|runs|can go] {k} km [on one litre|with one litre|on a litre of fuel|on one litre of petrol]. The [tank|full tank] [has|holds] {t:litre}. {A.He} [drives|has gone|goes] {d} km. // [How many kilometres can {A.he} still go?|How far can {A.he} still [go|drive]?]",
        "The tank of {A}'s {vehicle:one} [has|holds] {t:litre}. [With|On] one litre {A.he} can [drive|go] {k} km. {A.He} [drives|goes] {d} km with a full tank. // How [far|many kilometres] can {A.he} [still go|drive after that]?",
        "{vehicle:an} with {t:litre} of fuel goes {k} km on [each|every|one] litre. It [has gone|has driven|goes] {d} km. How [many kilometres|far] can it still go?",
    ),
    "commute": (
        "{A} lives {s} km from [work|school|the office|the factory]. {A.He} [goes|drives|rides|travels] there and back {d:day} a week. [How many kilometres|How far] does {A.he} [go|travel] in {w:week}?",
        "The way to {A}'s [school|work|office] is {s} km. {A.He} goes there and back [on {d:day} a week|{d:day} each week|{d:day} every week]. [How many kilometres is that|How far is that|How many kilometres does {A.he} go] in {w:week}?",
        "{A} [cycles|drives|walks] {s} km to [work|school] and {s} km back, {d:day} [a|per|each] week. [How many kilometres is that|How far is that] in {w:week}?",
    ),
    "fence-cost": (
        "{A} has a [garden|yard|field|meadow] <lm>. {A.He} [puts|builds|wants] a fence around it. The fence costs {c:$} [a|per] metre. // <pay A>",
        "A [garden|yard|field|park] is {l} m [long|in length] and {b} m [wide|in width]. {A} [builds|puts|needs] a fence [all around it|around it]. [One metre|Each metre|A metre] [costs|of fence costs] {c:$}. // <pay A>",
        "A fence goes [all |]around a [garden|yard|field] <lm>. It costs {c:$} [a|per|for each] metre. // [How much does the fence cost<total>?|What does the fence cost?|<find the cost of the fence>]",
    ),
    "floor-tiles": (
        "{A} [has|tiles] a [room|kitchen|hall|bathroom] <lm>. Tiles cost {c:$} [a|per] square metre[ and|, and] glue costs {d:$}. // <pay A>",
        "A [room|kitchen|hall] is {l} m long and {b} m wide. [Each|One|A] square metre of tiles costs {c:$}. [The glue costs|The glue is|Glue for all of it costs] {d:$}. // [How much do the tiles and the glue cost<total>?|<cost>]",
        "{A} [buys|needs] tiles for a [floor|room|kitchen] <lm>. They cost {c:$} for [each|one|every] square metre. {A.He} also [buys|needs] glue for {d:$}. // <pay A>",
    ),
    "garden-pond": (
        "{A} has a [garden|lawn|yard] <lm>. A [pond|pool] in it is {p} m long and {q} m wide. // [How many square metres [are left|remain|are free]?|<find the area that is left>]",
        "A [garden|park|lawn] is {l} m by {b} m. [There is|It has|In it is] a [pond|pool|flower bed] of {p} m by {q} m. // How many square metres [are left|remain|are not covered by it]?",
        "A [pond|pool|shed] of {p} m by {q} m is [built|put] in a [garden|park|yard] <lm>. // [How many square metres [are left|remain|are still free]?|<find the area that is left>]",
    ),
    "age-times": (
        "{A} is [now |]{a} years old. {B} is {k} times as old as {A}. // [How old will {B} be|What will be {B}'s age] in {n:year}?",
        "{A} is {a} years old[. {B}| and {B}] is {k} times as old. How old will {B} be in {n:year}?",
        "{A} is {a:year} old. {A.His} [mother|father|aunt|uncle|teacher] is {k} times as old. [How old will that person be|What will that person's age be] in {n:year}?",
        "{B} is {k} times as old as {A}. {A} is {a:year} old[| now| today]. [How old will {B} be|What will be the age of {B}] in {n:year}?",
    ),
    "age-sum": (
        "{A} is {a:year} old. {B} is {d:year} older[| than {A}]. [How old will they be together|What will be the sum of their ages|What is the sum of their ages|How old will both be together] in {n:year}?",
        "[Today |]{A} is {a:year} old[. {B}| and {B}] is {d:year} older than {A}. // [What will be the sum of their ages|What will their ages add up to|How old will they be together|What will their total age be] in {n:year}?",
        "{A} is {a} and {B} is {d:year} older. [What will their ages add up to|What will be the sum of their ages|How old will they be together] in {n:year}?",
        "{A} is {a:year} old[ and|, and] {A.his} [friend|cousin|neighbour] {B} is {d:year} older. [What will be the sum of both ages|How old will they be together|What will their ages add up to] in {n:year}?",
    ),
    "practice-minutes": (
        "{A} [practises|plays|trains|reads|dances] {m:minute} <per> day for {d:day}. {A.He} does another {h:hour} [on Sunday|at the weekend|on the last day]. // [How many minutes is that<total>?|Find the total number of minutes.|What is the total time in minutes?]",
        "For {d:day}, {A} [practises|reads|trains|works] {m:minute} <per> day. [Then|After that] {A.he} [adds|does] {h:hour} more. // [How many minutes is that<total>?|Find the total number of minutes.|What is the total time in minutes?]",
        "{A} [trained|practised|read|danced] {m:minute} <per> day for {d:day} and {h:hour} [on the weekend|on Sunday|on another day]. // [How many minutes was that<total>?|Find the total number of minutes.]",
    ),
    "film-left": (
        "A [film|concert|show|play|match] [lasts {h:hour} and {m:minute}|takes {h:hour} and {m:minute}|is {h:hour} and {m:minute} long]. {A} has [seen|watched] {w:minute}. // [How many minutes are left?|How many minutes remain?|How many minutes are still to come?|Find the number of minutes left.]",
        "{A} [watches|sees] a [film|show|play|match] that [lasts|takes] {h:hour} and {m:minute}. [So far {A.he} has seen|{A.He} has seen|{A.He} has already watched] {w:minute}. // How many minutes [are left|remain|are still to come]?",
        "[The lesson|The journey|The class|The concert] takes {h:hour} and {m:minute}. {w:minute} [are over|have passed|are already over]. // [How many minutes are left?|How many minutes remain?|Find the number of minutes left.]",
    ),
    "holiday-days": (
        "{A} [travels|is on holiday|is on a trip] for {w:week} and {d:day}. {A.He} [spends|pays|needs] {p:$} <per> day. // <pay A>",
        "A [holiday|trip|journey|visit] [lasts|takes] {w:week} and {d:day}. [Each day|Every day|One day] costs {p:$}. // [How much does it cost<total>?|<find the total cost>|What does it cost<total>?]",
        "{A} [rents|hires] a [bike|room|tent|boat] for {w:week} and {d:day}. [It costs|The price is|{A.He} pays] {p:$} <per> day. // <pay A>",
    ),
    "rope-pieces": (
        "{A} has [a rope|a ribbon|a wire|a string] of {m:metre} and cuts it into pieces of {c} cm. {A.He} [uses {u} of them|gives {u:piece} away|sells {u:piece}|uses {u:piece}]. // <left pieces A>",
        "[A rope|A ribbon|A wire|A string] is {m:metre} long[ and|. It] is cut into pieces of {c} cm[. Then|, and] {u:piece} are [used|sold|taken away|lost]. // <remain pieces>",
        "{A} cuts {m:metre} of [rope|ribbon|wire|cloth] into pieces[, each {c} cm long| that are {c} cm long| of {c} cm]. {A.He} [uses|needs|gives away|sells] {u:piece}. // <left pieces A>",
    ),
    "flour-kilos": (
        "{A} has {k} kg of flour[ and|. {A.He}] [bakes|makes] {n:loaf} of bread. [Each loaf|Every loaf|One loaf] needs {g:gram}[| of flour]. // [How many grams [of flour |][are left|remain|does {A.he} have left]?|Find how many grams are left.]",
        "[A bag|A sack] has {k} kg of flour in it. {A} [takes|uses|needs] {g:gram} for each of {n:loaf}. // [How many grams [of flour |][are left|remain]?|How much flour is left, in grams?]",
        "{A} had {k} kg of flour[ and|. {A.He}] baked {n:loaf} with {g:gram} [each|in each]. // [How many grams [of flour |][are left|remain|does {A.he} have left]?|How much flour is left, in grams?]",
    ),
    "dozens": (
        "{A} [has|buys|bakes|gets] {d} dozen {item}. {A.He} [eats|gives away|sells|keeps] {u} and [shares|divides] the rest equally among {k:friend}. // <gets item friend>",
        "There are {d} dozen {item} [on a table|in a kitchen|in a shop|in a bag]. {A} [takes|eats|sells|buys] {u}[ and|, and] {k:child} share the rest equally. // <gets item child>",
        "{A} [bought|had|got] {d} dozen {item}. {A.He} [ate|sold|gave away] {u} of them. {k:friend} [shared the rest equally|got the rest, each the same number]. // How many {item} did each friend get?",
    ),
    "water-tank": (
        "A [tank|pool|pond] [holds|has room for|can hold] {t:litre}. {s:litre} are in it [already|at first]. A [pump|hose|pipe] [fills in|adds|brings] {p:litre} <per> minute for {m:minute}. // [How many litres are [still |]missing?|How many litres does it still need to be full?|How many more litres fit in?]",
        "There are {s:litre} [of water |]in a [tank|pool] [for {t:litre}|that holds {t:litre}]. [A pump|A hose|{A}] [adds|puts in|fills in] {p:litre} <per> minute. [How many litres are missing|How many more litres fit in|How many litres does it still need to be full] after {m:minute}?",
        "{A} fills a [tank|pool|pond] of {t:litre}. It has {s:litre} in it[ and|. Then] a [pump|hose] adds {p:litre} <per> minute for {m:minute}. // [How many litres are still missing?|How many more litres fit in?|Find how many litres are missing.]",
    ),
    "candle": (
        "A candle is {l} mm [tall|high]. It [gets {c} mm shorter|loses {c} mm|burns down {c} mm] [an|every|each|per] hour. [How tall is it|How many millimetres are left|How many millimetres remain|What is its height] after {h:hour}?",
        "{A} [lights|burns] a candle [that is {l} mm tall|of {l} mm|with a height of {l} mm]. It [loses|gets shorter by|burns down] {c} mm [an|every|each|per] hour for {h:hour}. // [How tall is the candle now?|How many millimetres are left?|How many millimetres of the candle remain?|Find the height that is left.]",
    ),
    "stairs": (
        "[A tower|A house|A building|A lighthouse] has {f:floor}. [Each floor has {s:stair}|There are {s:stair} on each floor]. Each stair is {c} inches [high|tall]. // [How many inches [is that|is it to the top]?|<find the height in inches>]",
        "{A} [goes|walks|runs] up {f:floor}. [Each|Every|One] floor has {s:stair} of {c} inches[| each]. // [How many inches does {A.he} [go up|climb]<total>?|<find the height in inches>]",
        "There are {f:floor} with {s:stair} each in [a tower|a house|an office]. [One stair|Each stair|Every stair] is {c} inches high. // How many inches [is that|is it to the top|are all the stairs together]?",
    ),
    "factory": (
        "{machine:an} makes {m:item} [an|per|each|every] hour. It [works|runs] {h:hour} <per> day for {d:day}. {b} of the {item} are [bad|broken|thrown away]. // [How many {item} are [good|left]?|How many good {item} are there?|Find the number of good {item}.]",
        "[A factory|{A}] has {machine:an} that makes {m:item} [an|per] hour. It [works|runs] {h:hour} <per> day. After {d:day}, {b} of the {item} are [broken|bad|sold|lost]. // <remain item>",
        "{A} [works|uses {machine:an} for] {h:hour} <per> day for {d:day} and makes {m:item} [an|per|each] hour. {b:item} are [broken|thrown away|sold]. // <remain item>",
    ),
    "printing": (
        "A printer [prints|makes] {p:page} [a|per|each|every] minute. {A} [prints|needs|wants] {c} copies of {b:page} each. // [How many minutes [does it take|is that|does {A.he} wait|does the printer need]?|How long does it take, in minutes?|Find the time in minutes.]",
        "{A} [needs|prints|wants] {c} copies of a [text|book|report|story] with {b:page}. The printer [prints|makes] {p:page} [a|per|each] minute. // [How many minutes does it take?|How long does it take, in minutes?|Find the time in minutes.]",
        "A [text|report|story] has {b:page}. {A} prints {c} copies of it on a printer that [makes|prints] {p:page} [a|per] minute. // [How many minutes does it take?|How many minutes does {A.he} need?|Find the time in minutes.]",
    ),
    "mean-of-three": (
        "{A} [gets|scores|has|wins] {a}, {b} and {c} points in three [games|tests|rounds|matches]. // [<find the average>|<find the mean>|How many points is that on average?|<find {A.his} average score>]",
        "In three [games|rounds|tests], {A} [scored|got] {a}, {b} and {c} points. // [<find the average>|<find {A.his} mean score>|How many points did {A.he} get on average?]",
        "{A}'s [scores|results|points] in three [games|tests|rounds] [are|were] {a}, {b} and {c}. // [<find the average>|<find the mean>|<find {A.his} average score>]",
    ),
    "swimming": (
        "{A} swims {n:length} <per> day in a pool [of {p} m|that is {p} m long]. {A.He} does [this|so] for {d:day} and [also |then ]swims {b} m in [a|the] lake. // [How many metres does {A.he} swim<total>?|How many metres is that<total>?|How far does {A.he} swim<total>?|<find the total distance>]",
        "A pool is {p} m long. For {d:day} {A} swims {n:length} <per> day[. Then {A.he} swims|, then] {b} m in [a|the] [lake|sea|river]. // [How many metres does {A.he} swim<total>?|How many metres is that<total>?|<find the total distance>]",
        "{A} swam {n:length} of a {p} m pool <per> day for {d:day}[. {A.He} also swam| and also] {b} m in [a|the] lake. // [How many metres did {A.he} swim<total>?|How far did {A.he} swim<total>?|<find the total distance>]",
    ),
    "growing": (
        "{A} has {flower:an} that is {a} cm [tall|high]. It grows {g} cm <per> week[ for {n:week}. Then {A.he} cuts|. After {n:week} {A.he} cuts] off {c} cm. // [How tall is the flower now?|How many centimetres tall is the flower now?|What is the height of the flower now?]",
        "{A}'s {flower:one} is {a} cm [tall|high][ and|. It] grows {g} cm <per> week for {n:week}. [Then|After that] {A.he} [cuts {c} cm off|cuts off {c} cm|makes it {c} cm shorter]. // [How tall is the flower now?|How many centimetres tall is the flower now?|What is the height of the flower now?]",
        "{flower:an} was {a} cm [tall|high]. [In {n:week} it grew|For {n:week} it grew] {g} cm <per> week. Then {A} cut off {c} cm. // [How tall is the flower now?|What is the height of the flower now?]",
    ),
    "relay": (
        "{n:runner} [want|plan|have] to run {t} m together. [Each of them|Each runner|Every runner] [runs|has run] {l:lap} of {m} m. // [How many metres are [left|missing|still to run]?|How many metres must they still run?|Find how many metres are missing.]",
        "A team of {n:runner} [wants|plans|has] to run {t} m. [Each runner|Everyone|Every one of them] runs {l:lap}[. One lap is|, and a lap is] {m} m. // [How many metres are [left|missing|still to run]?|How many metres must they still run?]",
        "A lap is {m} m long. {n:runner} [run|have run] {l:lap} each. [Their goal is|The team wants to run|Together they want to run] {t} m. // [How many metres are [left|missing]?|Find how many metres are missing.]",
    ),
    "truck-load": (
        "A [truck|lorry|boat|wagon] can [carry|take] {w} kg. {A} [loads|puts on] {a:sack} of {p} kg each and {b:crate} of {q} kg each. // [How many more kilograms can be loaded?|How many kilograms are still free?]",
        "[There are|{A} puts] {a:sack} of {p} kg each and {b:crate} of {q} kg each on a [truck|lorry|wagon]. It [may|can] carry {w} kg. // [How many more kilograms can be loaded?|How many kilograms are still free?|Find how many kilograms are still free.]",
        "{a:sack} of {p} kg and {b:crate} of {q} kg are [loaded|put] on a [truck|lorry|boat]. The limit is {w} kg. // [How many kilograms are [left|still free]?|How many more kilograms can be loaded?]",
    ),
}
