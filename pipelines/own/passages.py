"""Texts that the training prompts of the kind rewriting work on; they have {slots} themselves."""

# (text, a question that the text answers)
PROSE = (
    (
        "The old mill at the edge of {city} was built by a family of weavers. For almost eighty years it "
        "produced wool blankets, and nearly everyone in the district owned one. When the factory closed, "
        "{person} bought the building and turned the ground floor into a cafe. The machines are still "
        "there, and visitors may touch them.",
        "What did the mill produce?",
    ),
    (
        "{person} keeps bees on the roof of a car park. The four hives stand between two chimneys, where "
        "they are sheltered from the wind. In a good summer they give about {count} kilograms of honey. "
        "{person} sells half of it at the market on {day} and gives the rest to the neighbours, who never "
        "complain about the bees.",
        "Where do the hives stand?",
    ),
    (
        "Last winter the heating in the school library broke down for {small} weeks. The pupils came "
        "anyway. They read in coats and gloves, and {person}, the librarian, served hot tea from a large "
        "flask. When the heating was finally repaired, many of them said that they missed the tea.",
        "Who served the tea?",
    ),
    (
        "Snow leopards live in the high mountains of Central Asia. Their thick fur keeps them warm, and "
        "their long tails help them keep their balance on steep rocks. They hunt alone, mostly at dawn and "
        "dusk. Because they avoid people, researchers use automatic cameras to count them.",
        "Why do researchers use automatic cameras?",
    ),
    (
        "A new tram line will connect the harbour with the university from {month}. Trams will run every "
        "{small} minutes during the day and every half hour at night. The city expects that {small} "
        "thousand people will use the line each day. A single ticket costs two euros, and children under "
        "six travel free.",
        "How much does a single ticket cost?",
    ),
    (
        "Every {day} morning {person} walks to the river with a notebook and writes down which birds can "
        "be seen. The list began as a school project and now fills eleven notebooks. Last month a "
        "scientist from {city} asked to copy them, because nobody else had watched the same place for so "
        "long.",
        "How many notebooks does the list fill now?",
    ),
    (
        "Glass is made by melting sand together with soda and limestone at very high temperatures. The "
        "liquid can be blown, poured or pressed into a shape. If it cools too quickly it cracks, so "
        "glassmakers let it cool slowly in a special oven. Broken glass can be melted again as often as "
        "one likes.",
        "What happens if glass cools too quickly?",
    ),
    (
        "{person} and {person2} opened a repair cafe in a former bakery in {city}. Once a month people "
        "bring broken lamps, radios and toasters. Volunteers repair what they can, and the owners watch "
        "and learn. In the first year {count} things were saved from the rubbish, among them a wedding "
        "dress and a trumpet.",
        "How often does the repair cafe take place?",
    ),
    (
        "The lighthouse on the island no longer needs a keeper. Its lamp has been controlled by a computer "
        "since {year}. Even so, {person} climbs the {count} steps every week to clean the windows. From "
        "the top one can see three countries when the air is clear, and on foggy days nothing at all.",
        "What does {person} do every week?",
    ),
    (
        "Coral reefs cover less than one percent of the sea floor, yet about a quarter of all known sea "
        "animals depend on them. Corals look like plants, but they are animals. Tiny algae live inside "
        "them and give them food and colour. When the water becomes too warm, the corals lose the algae "
        "and turn white.",
        "What happens to corals when the water becomes too warm?",
    ),
    (
        "My grandfather taught me to bake bread without a recipe. He said that flour is different every "
        "week and that hands are better than scales. His loaves were never the same twice. I wrote down "
        "everything he did one {day} in {month}, and when I follow those notes exactly, the bread is "
        "always a little worse than his.",
        "What did the grandfather say about hands?",
    ),
    (
        "The town council of Elmbridge has decided to plant {count} trees along the main street. Half of "
        "them will be lime trees and half will be maples. Work begins on {date} and should take {small} "
        "weeks. During that time cars have to use the road past the hospital. Several shop owners had "
        "asked for more shade in summer.",
        "When does the work begin?",
    ),
    (
        "{person} lost a suitcase on the way from {city} to {city2}. It contained two shirts, a chess set "
        "and the only copy of a novel. The airline found it after {small} days in a storage room in the "
        "wrong city. The shirts were wet, but the novel was dry, because it had been packed in a plastic "
        "bag.",
        "What did the suitcase contain?",
    ),
    (
        "Octopuses have three hearts and blue blood. Two of the hearts pump blood through the gills, and "
        "the third supplies the rest of the body. Each arm can taste and move almost on its own. Octopuses "
        "in aquariums have learned to open jars, and some have left their tanks at night to look for food.",
        "How many hearts do octopuses have?",
    ),
    (
        "Our office moved to the third floor of the building on Harbour Street. The kitchen is bigger, but "
        "the lift is slow, so most people take the stairs. {person} has already counted them: there are "
        "{count}. The meeting rooms are named after rivers, and the largest one, Danube, has a view of the "
        "park.",
        "What are the meeting rooms named after?",
    ),
    (
        "In {year} a storm blew down the big oak in the middle of the village. {person}, a carpenter, "
        "asked for the wood. The trunk became a long table, and the branches became {count} spoons, one "
        "for every household. Once a year all families eat at the table, and everybody brings the right "
        "spoon.",
        "What became of the trunk?",
    ),
    (
        "The museum in {city} has bought a map that shows the coast as sailors knew it four hundred years "
        "ago. Some islands are far too large, and others do not exist at all. Experts think that the "
        "mapmaker copied mistakes from an older map. The map will be on display from {date}, and entry is "
        "free on {day}.",
        "What do experts think about the mapmaker?",
    ),
    (
        "Tea is the most popular drink in the world after water. All kinds of tea come from the leaves of "
        "one plant. Black tea is fully oxidised, green tea is heated soon after picking, and white tea is "
        "made from young buds. The plant grows best in warm regions with a lot of rain.",
        "What is white tea made from?",
    ),
    (
        "{person} is training for a swimming race across the lake. The distance is {small} kilometres and "
        "the water is rarely warmer than eighteen degrees. A friend follows in a rowing boat with warm "
        "soup. Last year {person} had to give up after an hour, but this time the training began in {month}.",
        "Who follows in a rowing boat?",
    ),
    (
        "The night train from {city} arrives at {time}. It has {small} sleeping cars and a small "
        "restaurant that serves soup, omelettes and coffee. Passengers who cannot sleep meet there and "
        "play cards. The conductor, {person}, has worked on this line for twenty years and knows many of "
        "them by name.",
        "What does the restaurant serve?",
    ),
)

MAIL = (
    "Hi {person},\n\nthe meeting with the architect has moved to {day} at {time}. Please bring the floor "
    "plans and the list of open questions. {person2} will join us by phone from {city}. We meet in room "
    "{count}.\n\nBest,\n{person3}",
    "Dear {person},\n\nthank you for your order of {count} {goods}. The parcel was sent on {date} and "
    "should reach {city} within {small} working days. If anything is damaged, please write to {person2} in "
    "our service team.\n\nKind regards,\nHillside Trading",
    "hey {person}! are you free on {day}? {person2} got tickets for the concert at {time} and one is left. "
    "costs {small}0 euros. we meet in front of the station in {city}, bring a jacket, it's outside :)",
    "Hello team,\n\na short summary of today: {person} finishes the report by {date}. {person2} calls the "
    "printer and asks for a better price. {person3} books the hall in {city} for {count} people. Next "
    "meeting: {day}, {time}.\n\nThanks, everyone!",
    "Dear Ms Holloway,\n\nI am writing to apply for the position of assistant in your bookshop in {city}. "
    "I worked for {small} years at the town library and speak two languages. I could start in {month}. I "
    "would be glad to meet you on any {day}.\n\nSincerely,\n{person}",
    "Dear parents,\n\non {date} class 4b is going to the science museum in {city}. The bus leaves at "
    "{time}. Please give your child a packed lunch, a bottle of water and {small} euros for the entry. "
    "{person} and {person2} will accompany the children.\n\nThe school office",
    "Hi {person}, it's {person2}. I missed the bus, so I will be about {count} minutes late. Could you "
    "start without me and show {person3} the photos from {city}? The laptop is in the blue bag. Password "
    "is on the yellow note.",
    "To all residents,\n\nthe water will be turned off on {day} from {time} for about {small} hours, "
    "because a pipe in the cellar has to be replaced. Please fill a few bottles beforehand. Questions can "
    "be sent to {person}, who looks after the house.\n\nThe administration",
    "Dear Mr Okafor,\n\nthe washing machine I bought from you on {date} stopped working after {small} "
    "weeks. It shows error E{count} and does not spin. I would like to have it repaired or replaced. You "
    "can reach me by phone after {time}.\n\nYours sincerely,\n{person}",
    "{person}, good news: the landlord in {city} said yes! We can move in on {date}. The rent is {count}0 "
    "a month, heating included. {person2} can lend us a van on {day}, but we have to return it before "
    "{time}. Can you ask {person3} to help carry the sofa?",
    "Minutes of the garden club, {date}. Present: {person}, {person2}, {person3}. The club will buy "
    "{count} tulip bulbs. {person2} repairs the fence before {month}. {person3} asks {city} council for a "
    "second water tap. The next meeting is on {day} at {time}.",
)

RECORDS = (
    "{person}, {count} years old, lives in {city}\n{person2}, 3{small} years old, lives in "
    "{city2}\n{person3}, 5{small} years old, lives in {city3}",
    "Shopping: {count} eggs, 2 litres of milk, {small} lemons, 1 loaf of bread, 500 grams of rice, {small} apples",
    "Order 1041: {goods}, {count} pieces, paid\nOrder 1042: {goods2}, {small} pieces, not paid\nOrder "
    "1043: {goods3}, 12 pieces, paid\nOrder 1044: {goods}, 3 pieces, not paid",
    "Departures\n{time} {city}, platform {small}\n{time2} {city2}, platform 1\n{time3} {city3}, platform 11",
    "{person} scored {count} points. {person2} scored 8{small} points. {person3} scored 9{small} points. "
    "{person4} did not take part.",
    "Monday: swimming at {time}. Tuesday: dentist at {time2}. Thursday: dinner with {person}. Friday: "
    "flight to {city} at {time3}. Saturday: nothing. Sunday: call {person2}.",
    "Room 1: {person}, two nights, breakfast included. Room 2: {person2}, {small} nights, no breakfast. "
    "Room 3: free. Room 4: {person3}, one night, breakfast included.",
    "In stock: {count} {goods} at 4 euros each, {small} {goods2} at 12 euros each, 27 {goods3} at 3 euros each.",
    "Members: {person} (treasurer, since {year}), {person2} (chair, since 2015), {person3} (secretary, "
    "since 2019), {person4} (member, since 2021)",
    "Temperatures today: {city} {count} degrees and cloudy, {city2} 1{small} degrees and sunny, {city3} "
    "{small} degrees and rain.",
)

ROUGH = (
    "me and {person} was going to the lake on {day} but the car dont start so we stay at home and play card all day.",
    "their are {count} student in the class but only {small} of them has bring there book today",
    "I has recieved you're letter on {date}. Its very intresting and i will answering it soon as posible.",
    "The hotel in {city} were nice, but the room was to small and the brekfast finish already at {time}, "
    "that was to early for us.",
    "{person} dont like coffe, {person.he} drink always tea with too spoon of suger and a bit milk in it.",
    "yesterday we go to the musuem in {city} and seen many beautifull painting, the entrance were free "
    "becuase it was {day}",
    "Please to send me the informations about the course in {month}, I am interesting for learn to cook italian foods.",
    "the new bus are more quiter then the old one and it have {count} seat, but peoples says it come often late",
    "If I would have more time I will learned to play piano like {person}, who play since {small} year.",
    "My brother live in {city} since {year} and he work like a engineer in a big companie who make trains.",
    "we was very suprised when {person} telled us that {person.he} is going to moved to {city} next weak",
    "The dog of {person} have run away on {day} evening, it is brown an has a white spot on it's left ear, "
    "please call if you seen him.",
    "i think that everybody should learns cooking in the school becuase its healty and you safe alot of money",
    "Dear sir, i am writting to complain of the lamp what i buyed in your shop the {date}, it dont work no "
    "more after {small} day.",
)
