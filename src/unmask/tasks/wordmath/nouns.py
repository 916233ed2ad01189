"""Things of the `wordmath` problems: nouns by kind, with their plurals."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Noun:
    """A countable noun, kept in the singular."""

    one: str

    def count(self, number: int) -> str:
        """The noun as it stands behind a number."""
        return self.one if number == 1 else plural(self.one)


IRREGULAR = {
    "child": "children",
    "loaf": "loaves",
    "shelf": "shelves",
    "scarf": "scarves",
    "knife": "knives",
    "goose": "geese",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "fish": "fish",
    "goldfish": "goldfish",
    "sheep": "sheep",
    "deer": "deer",
    "bison": "bison",
    "ox": "oxen",
    "calf": "calves",
    "mouse": "mice",
    "foot": "feet",
    "person": "people",
}


def _plural(noun: str) -> str:
    head, _, last = noun.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}" if head else last


_PLURALS: dict[str, str] = {}


def plural(noun: str) -> str:
    """The plural of a noun; of several words the last one changes ("apple tree" -> "apple trees")."""
    if noun not in _PLURALS:
        _PLURALS[noun] = _plural(noun)
    return _PLURALS[noun]


POOLS: dict[str, tuple[Noun, ...]] = {
    name: tuple(Noun(word.strip()) for word in words.split(","))
    for name, words in {
        "stationery": "pen, pencil, notebook, ruler, eraser, marker, folder, brush, envelope, crayon, stapler, "
        "binder, notepad, sharpener, glue stick, paper clip, highlighter, calendar, postcard, planner, sketchbook, "
        "ink pen, compass, calculator, tape roll, sticky note, pencil case, clipboard, paintbrush, crayon box",
        "clothes": "shirt, hat, jacket, sweater, belt, skirt, cap, tie, dress, scarf, coat, sock, glove, hoodie, "
        "blouse, vest, tunic, shoe, boot, sandal, apron, cardigan, raincoat, headband, robe, suit, bow tie, swimsuit, "
        "jersey",
        "fruit": "apple, pear, orange, peach, plum, lemon, mango, melon, banana, fig, apricot, kiwi, lime, pineapple, "
        "cherry, grapefruit, coconut, papaya, guava, nectarine, strawberry, tangerine, avocado, pomegranate, date, "
        "watermelon, raspberry, lychee, quince, clementine",
        "vegetable": "carrot, cucumber, tomato, potato, onion, pumpkin, cabbage, turnip, leek, pepper, radish, beet, "
        "eggplant, zucchini, artichoke, parsnip, cauliflower, mushroom, bean, pea, sweet potato, lettuce, shallot, "
        "squash, chili, yam, red pepper, red onion, courgette, aubergine",
        "toy": "marble, sticker, toy car, card, stamp, shell, coin, bead, button, badge, pen, pencil, book, balloon, "
        "doll, toy train, toy soldier, ball, block, stone, magnet, key ring, postcard, crayon, ribbon, toy plane, "
        "baseball card, figure, puzzle piece, photo, star, flag, seashell, token, bracelet, ring, candle, apple, "
        "comic",
        "album": "sticker, card, stamp, photo, postcard, picture, trading card, baseball card, football card, "
        "drawing, pressed flower, coin, ticket, label, poem, autograph, letter, recipe",
        "sweet": "candy, cookie, toffee, chocolate, muffin, cupcake, biscuit, lollipop, brownie, caramel, sweet, "
        "donut, gummy bear, jelly bean, mint, truffle, waffle, macaroon, praline, candy bar, chocolate bar, nougat "
        "bar, wafer, marshmallow, gumdrop, fruit drop, honey drop, ice cream, licorice stick, cake pop",
        "baked": "cookie, muffin, cupcake, biscuit, brownie, scone, pretzel, bun, roll, bagel, croissant, tart, pie, "
        "donut, macaroon, waffle, cracker, pastry, cinnamon roll, cheese roll, honey cake, breadstick, pancake, wafer",
        "bread": "roll, bagel, loaf, bun, pretzel, croissant, pie, scone, muffin, baguette, cookie, donut, pastry, "
        "cupcake, sandwich, tart, egg, breadstick, cracker, flatbread, waffle, pancake, brownie, biscuit",
        "flower": "rose, tulip, daisy, lily, orchid, sunflower, violet, carnation, daffodil, poppy, peony, iris, "
        "marigold, lupin, dahlia, hyacinth, begonia, petunia, magnolia, camellia, geranium, crocus, pansy, primrose",
        "tree": "apple tree, pear tree, cherry tree, plum tree, olive tree, lemon tree, fig tree, orange tree, peach "
        "tree, mango tree, lime tree, walnut tree, apricot tree, almond tree, chestnut tree, hazel tree, date palm, "
        "coconut palm, avocado tree, quince tree, mandarin tree",
        "animal": "cow, goat, sheep, horse, pig, donkey, dog, cat, calf, lamb, pony, rabbit, llama, alpaca, camel, "
        "mule, deer, ox, foal, bison",
        "bird": "hen, duck, goose, turkey, chicken, quail, swan, pigeon, peacock, pheasant, ostrich, partridge",
        "pet": "fish, turtle, rabbit, parrot, hamster, canary, frog, goldfish, guinea pig, mouse, lizard, snake, "
        "kitten, puppy, gerbil, finch, parakeet, gecko, newt, snail, budgie",
        "box": "box, bag, crate, basket, carton, pack, jar, bucket, tin, case, packet, tray, sack, bowl, drawer, "
        "chest, container, parcel",
        "goal": "bicycle, guitar, camera, tent, tablet, drum, telescope, skateboard, piano keyboard, kayak, phone, "
        "laptop, bike, game console, violin, watch, computer, scooter, microscope, drone, sewing machine, surfboard, "
        "radio, robot, printer, trumpet, sofa, desk, television, flute, globe, necklace, puppy",
        "machine": "machine, robot, printer, press, device, production line, mill, factory line, workshop, plant, "
        "conveyor, assembly line",
        "made": "toy, bottle, bolt, cup, chair, lamp, plate, tile, spoon, clock, screw, nail, fork, knife, bowl, mug, "
        "brick, can, key, pipe, button, candle, bulb, battery, glove, ball, pencil, box, wheel, mirror, vase, jar",
        "book": "book, comic, magazine, atlas, novel, diary, dictionary, textbook, cookbook, notebook, picture book, "
        "storybook, poetry book, guidebook, songbook, comic book, biography, encyclopedia, map, newspaper, journal",
        "vehicle": "car, van, truck, motorbike, lorry, bus, taxi, jeep, scooter, motorcycle, minibus, pickup",
        "game": "game, book, puzzle, model kit, kite, ball, board game, card game, jigsaw, video game, doll, yo-yo, "
        "toy train, robot, teddy bear, chess set, comic, jump rope, toy boat, magic set, building set, drum",
    }.items()
}
