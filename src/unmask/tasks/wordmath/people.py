"""People of the `wordmath` problems: about 250 given names with their pronouns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Person:
    """A name with its pronouns: "he" or "she", "his" or "her", "him" or "her"."""

    name: str
    he: str
    his: str
    him: str

    def form(self, spec: str) -> str:
        """The name (empty spec) or a pronoun; a capital in the spec gives a capital."""
        forms = {"": self.name, "he": self.he, "his": self.his, "him": self.him}
        forms |= {"He": self.he.capitalize(), "His": self.his.capitalize()}
        return forms[spec]


_FEMALE = (
    "Mia Anna Lena Sofia Clara Emma Nora Ruth Ida Eva Lucy Maya Zoe Alice Grace Hannah Julia Kate Laura Maria Nina "
    "Olivia Priya Rosa Sara Tara Vera Wendy Yuki Amina Bella Carmen Diana Elena Fatima Greta Helen Ingrid Jane Karin "
    "Mary Lily Ella Amy Lisa Susan Sarah Linda Emily Chloe Ava Isabella Sophie Charlotte Amelia Ruby Molly Daisy Poppy "
    "Rachel Rebecca Jessica Jenny Karen Nancy Betty Sandra Ashley Megan Nicole Tina Gina Monica Paula Marta Lucia Ines "
    "Pilar Camila Valentina Gabriela Natalia Irina Olga Tanya Svetlana Katya Anya Zofia Agata Petra Hana Jana Ilse "
    "Astrid Freya Sigrid Maja Elsa Aisha Leila Yasmin Noor Zahra Mariam Salma Huda Aylin Elif Zeynep Ananya Meera "
    "Kavya Lakshmi Sita Divya Mei Ling Xia Yan Sakura Keiko Naomi Aiko Hina Minji Jisoo Thuy Linh Ama Abena Zuri Nia "
    "Imani Ngozi Chiara Giulia Francesca Bianca Claire Celine Margot Esther Miriam"
)
_MALE = (
    "Tom Ben Paul Leo Max Jack Adam Omar Ivan Karl Noah Peter Ravi Sam Victor Ali Bruno Carlo Daniel Erik Felix George "
    "Hugo Ian Jonah Kevin Liam Martin Nico Oscar Pablo Quentin Robert Simon Theo Umar Walter Yusuf Arthur Diego John "
    "James David Michael William Henry Tim Jim Bob Bill Joe Mike Mark Luke Matt Nick Dan Fred Frank Harry Charlie "
    "Thomas Ethan Lucas Mason Logan Jacob Ryan Tyler Dylan Nathan Eric Brian Steve Greg Jeff Scott Philip Andrew "
    "Anthony Kenji Hiro Takeshi Ken Haruto Wei Jun Chen Bao Minh Duc Jin Arjun Rahul Vikram Anil Sanjay Rohan Amit "
    "Kiran Ahmed Hassan Ibrahim Khalid Tariq Mustafa Samir Bilal Emre Mehmet Kerem Kwame Kofi Jabari Tunde Chidi Sipho "
    "Juma Luis Carlos Miguel Jose Juan Javier Mateo Rafael Andres Fernando Marco Luca Matteo Giovanni Antonio Pierre "
    "Louis Antoine Jean Hans Fritz Otto Jonas Lars Sven Nils Anders Mikko Pavel Dmitri Boris Yuri Igor Sergei Tomas "
    "Jakub Marek Piotr Milan Goran Nikos Yannis David Isaac Ezra Levi"
)


def _people() -> tuple[Person, ...]:
    female = [Person(name, "she", "her", "her") for name in _FEMALE.split()]
    male = [Person(name, "he", "his", "him") for name in dict.fromkeys(_MALE.split())]
    return tuple(female + male)


PEOPLE = _people()
