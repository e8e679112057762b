"""Words to spell: everyday English ones, and made-up ones that can be pronounced.

The English ones were written down for this project, and are no data set. Palindromes are left out of both: spelt
backwards they are themselves. Left out too: proper names, capitals, accents, other languages.
"""

from __future__ import annotations

import random

_ENGLISH = """
account address advice afternoon airport album almond amount anchor angle animal answer apple april apron arrow
artist august autumn avocado baby backpack bacon badge bakery balcony ball balloon banana bandage banner barber barn
basket bathroom battery beach bean bear beaver bedroom beetle bell belt bench berry bicycle bird birthday biscuit
blanket blossom boat body bone book bookshelf boot border bottle bottom bowl branch bread breakfast breeze brick
bridge broccoli broom brother brush bubble bucket building bull bundle burger butter butterfly button cabbage cabin
cable cactus cake calendar camel camera camp canary candle candy canoe captain caramel card carpet carriage carrot
castle cathedral cave ceiling cellar cello century cereal chain chair chalk cheese cherry chess chicken child
chimney chin chocolate church cinema circle circus city classroom cliff clock closet cloth cloud clown coat cobweb
coconut coffee coin collar colour comb committee compass computer concert cookie copper coral corner cotton country
cousin cow crab cradle crayon cream cricket crocodile crow crown cucumber cup cupboard curtain cushion daisy dance
daughter decade deer dentist desert desk diamond dictionary difference dinner dish doctor dog dolphin donkey door
dragon drawer dream dress drum duck dust eagle ear earth egg elbow elephant elevator engine envelope evening eyebrow
fabric face factory family farm farmer father feather fence fern festival field finger fire fireplace fish flag
flame flower flute fog football forest fork fountain fox freezer friend frog fruit funnel furniture garage garden
garlic gate giant gift ginger giraffe glacier glass glove glue goat gold goose grandmother grape grass gravel guitar
hair hall hammer hamster hand happiness harbour hat hawk hazelnut heart hedge heel helmet hen herb hill hippopotamus
holiday honey hook horse hospital hotel hour house ice iceberg insect iron island jacket jam jar jelly jewel journey
juice jungle kettle key keyboard kingdom kitchen kite kitten knee knife knot ladder lake lamb lamp lantern laundry
lawn leaf leather lemon lemonade lesson letter library lighthouse lightning lily lion lip lizard lobster luggage
lunch magnet mammal mango map marble market mattress meadow medicine melon message microphone milk mill minute
mirror mitten monday money monkey month moon morning mosquito moss mother motor mountain mouse mouth mud muffin
museum mushroom music mustard nail napkin neck necklace needle neighbour nest net newspaper nose notebook number
nurse oak ocean october octopus office oil olive onion orange orchard orchestra ostrich otter oven owl oyster
package paint palace pancake panda paper parachute parade parent parrot parsley passenger path peach peacock peanut
pear pebble pelican pen pencil penguin people pepper piano picnic picture pig pigeon pillow pilot pineapple pizza
planet plant plate playground plum pocket poem pond pony popcorn postcard potato pottery president prince puddle
pumpkin puppet puppy purple puzzle pyramid quarter queen question quilt rabbit raccoon radish railway rain rainbow
raisin raspberry refrigerator restaurant ribbon rice ring river road robin rocket roof room root rope rose rug
sailor salad salmon salt sand sandal sandwich sauce sausage scarf school science scissors season secret seed
sentence september shadow shark sheep shelf shell ship shirt shoe shoulder shovel shower silver sister skeleton
skirt sky sleeve slipper snail snake snow soap sock sofa soldier soup spaghetti sparrow spider spinach spoon spring
squirrel stable stadium star station stomach stone storm story stove strawberry street student sugar suitcase summer
sun sunday sunflower sunset supper surprise swan sweater swing table tail tailor teacher team teapot telephone
telescope tennis tent theatre thread throat thumb thunder ticket tiger toast toe tomato tomorrow tongue tooth
toothbrush towel tower town toy tractor train treasure tree triangle trousers truck trumpet tulip tunnel turkey
turtle umbrella uncle uniform universe vacation valley vanilla vase vegetable vehicle village vinegar violet violin
volcano waffle waiter wall wallet walnut watch water waterfall watermelon weather wednesday weekend whale wheat
wheel whisper whistle willow window winter wolf wood wool word world worm wrist yellow yogurt zebra zipper
"""

ENGLISH: tuple[str, ...] = tuple(_ENGLISH.split())

_STARTS = (
    "b",
    "d",
    "f",
    "g",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "z",
    "br",
    "cl",
    "dr",
    "pl",
    "st",
    "tr",
)
_VOWELS = ("a", "a", "e", "e", "i", "o", "u", "ee", "oo")
_ENDS = ("", "", "", "l", "m", "n", "r", "s", "t", "ll", "ss", "tt")


def made_up(rng: random.Random, length: int) -> str:
    """A word of so many letters (3 or more), of syllables; the last one is cut off where it doesn't fit."""
    while True:
        word = ""
        while len(word) < length:
            word += rng.choice(_STARTS) + rng.choice(_VOWELS) + rng.choice(_ENDS)
        word = word[:length]
        if word != word[::-1]:
            return word
