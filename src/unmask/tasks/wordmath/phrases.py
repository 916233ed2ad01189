"""Phrases that many `wordmath` wordings share, each in many variants.

`<pay A>` in a wording stands for PHRASES["pay"] with A for %1; `%*` is all that follows the phrase's name.
"""

# ruff: noqa: E501 - one phrase a line reads better than wrapped ones

from __future__ import annotations

PHRASES: dict[str, str] = {
    # Small words.
    "per": "[a|each|every|per]",
    "every": "[each|every]",
    "total": "[| in total| altogether| in all]",
    "each": "[each|apiece]",
    "at": "[at|for] {%1:$} <each>",
    "priced": "[<at %1>|that cost {%1:$} <each>|at a price of {%1:$} each|costing {%1:$} each]",
    "price": "[each %1 costs {%2:$}|one %1 costs {%2:$}|the price of one %1 is {%2:$}|a single %1 costs {%2:$}]",
    "has": "[has|owns|has got]",
    "had": "[had|owned]",
    "buys": "[buys|gets|picks up|takes|purchases|chooses]",
    "bought": "[bought|got|picked up|purchased]",
    "then": "[|Then |After that, |Later ]",
    "day": "[|Today, |One day, |On Monday, |On Saturday, |This morning, ]",
    "lm": "[that is {l} m long and {b} m wide|of {l} m by {b} m|{l} m long and {b} m wide|with a length of {l} m and a width of {b} m]",
    # Things in containers: number, container, number, thing.
    "boxes": "[{%1:%2} of {%3:%4}|{%1:%2} of {%3:%4} each|{%1:%2} with {%3:%4} each|{%1:%2} with {%3:%4} in each|{%1:%2}, each with {%3:%4}|{%1:%2} that hold {%3:%4} each]",
    "gives-away": "[gives away {%1:%2}|gives {%1:%2} away|hands out {%1:%2}|gives {%1:%2} to [friends|{A.his} friends|a friend|{A.his} sister|{A.his} brother|a neighbour]|loses {%1:%2}|sells {%1:%2}]",
    "gave-away": "[gave away {%1:%2}|gave {%1:%2} away|handed out {%1:%2}|gave {%1:%2} to [friends|{A.his} friends|a friend|{A.his} cousin]|lost {%1:%2}|sold {%1:%2}]",
    # Questions. `find` is followed by what is asked for.
    "find": "[What is %*?|Find %*.|Calculate %*.|Work out %*.|What's %*?]",
    "left": "[How many {%1} does {%2.he} [have left|still have|have now|keep|have]?|How many {%1} [are left|remain|are left over|are still there|are left now]?|Find [the number of {%1} left|how many {%1} are left].|What is the number of {%1} left?|How many {%1} are now left?]",
    "remain": "[How many {%1} [are left|remain|are left over|are there now|are still there]?|Find [the number of {%1} left|how many {%1} are left].|What is the number of {%1} left?]",
    "now": "[How many {%1} [are there|are there now|is that|are there in the end]?|Find [the number of {%1}|how many {%1} there are now].|What is the number of {%1} now?]",
    "many": "[How many {%1} [are there|is that|does that make]<total>?|Find the [number|total number] of {%1}.|What is the total number of {%1}?]",
    "pay": "[How much does {%1.he} [pay|spend]<total>?|How much money does {%1.he} [need|pay|spend]?|How much must {%1.he} pay<total>?|How much does {%1.he} have to pay?|What does {%1.he} pay<total>?|<find the total [cost|price]>|How many dollars does {%1.he} [pay|spend]?|How much is that<total>?]",
    "paid": "[How much did {%1.he} [pay|spend]<total>?|How much money did {%1.he} [need|pay|spend]?|What did {%1.he} pay<total>?|<find the total [cost|price]>|How many dollars did {%1.he} [pay|spend]?|How much was that<total>?]",
    "cost": "[How much does [it all|everything|all of this] cost?|What does everything cost<total>?|<find the total [cost|price]>|How much is that<total>?|How many dollars is that<total>?]",
    "money-left": "[How much money does {%1.he} have [left|now]?|How much does {%1.he} have [left|now]?|How much money [is left|remains|is left over]?|How many dollars [does {%1.he} have left|are left|does {%1.he} still have|remain]?|Find [the money left|how much money is left].|What is left of the money?]",
    "change": "[How much change does {%1.he} [get|receive|get back]?|How much money does {%1.he} [get back|have left]?|<find {%1.his} change>|How many dollars does {%1.he} get back?|How much [money is left|is left]?]",
    "earn": "[How much does {%1.he} [earn|make|get]<total>?|How much money does {%1.he} [earn|make|get]<total>?|How many dollars does {%1.he} [earn|make]?|<find {%1.his} [pay|total pay]>]",
    "split": "[How much does each [one |person |friend |]pay?|What does each [friend|person|one] pay?|How much [must|should] each [friend|person] pay?|How many dollars does each [friend|person] pay?|Find [what each person pays|the share of each person].]",
    "gets": "[How many {%1} does each [%2|one|%2] get?|How many {%1} does [one|every|each] %2 [get|receive]?|How many {%1} are there for each %2?|Find [the number of {%1} for each %2|how many {%1} each %2 gets].]",
    "weeks": "[How many weeks [does {%1.he} need|must {%1.he} save|will it take|does it take|does {%1.he} have to wait]?|For how many weeks must {%1.he} save?|Find the number of weeks {%1.he} needs.|How long does it take, in weeks?]",
    "far": "[How far does {%1.he} [go|travel]<total>?|How many kilometres [is that|does {%1.he} travel|does {%1.he} go]<total>?|<find the [whole|total] distance>|How long is the whole way?]",
    "km-left": "[How many kilometres [are left|remain|does {%1.he} still have to go|must {%1.he} still drive]?|How far [must {%1.he} still go|is it from there|is it still]?|<find the distance left>|Find how many kilometres are left.]",
}
