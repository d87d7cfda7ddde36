"""What a person would say of the 50 tasks of Meta-World, in some ways each."""

PHRASES = {
  "assembly": (
    "put the ring on the peg",
    "place the wrench's ring over the pole",
    "fit the nut onto the peg",
  ),
  "basketball": (
    "dunk the ball into the basket",
    "throw the basketball through the hoop",
    "drop the ball in the hoop",
  ),
  "bin-picking": (
    "move the cube from one bin to the other",
    "pick the block out of a bin and put it into the next",
  ),
  "box-close": (
    "put the lid on the box",
    "close the box with its cover",
    "cover the box",
  ),
  "button-press-topdown": (
    "press the button from above",
    "push the button down",
  ),
  "button-press-topdown-wall": (
    "press the button behind the bricks from above",
    "reach over the wall and push the button down",
  ),
  "button-press": (
    "press the button at the front",
    "push the button in",
  ),
  "button-press-wall": (
    "go round the wall and press the button",
    "push the button behind the brick wall",
  ),
  "coffee-button": (
    "press the button of the coffee machine",
    "start the coffee machine",
    "make a coffee",
  ),
  "coffee-pull": (
    "pull the mug away from the coffee machine",
    "take the cup from under the coffee machine",
  ),
  "coffee-push": (
    "push the mug under the coffee machine",
    "slide the cup below the coffee machine",
  ),
  "dial-turn": ("turn the dial", "rotate the knob", "twist the dial round"),
  "disassemble": (
    "take the ring off the peg",
    "lift the wrench from the pole",
    "pull the nut off the peg",
  ),
  "door-close": ("close the door", "push the safe's door shut"),
  "door-lock": (
    "lock the door",
    "turn the lock of the door down",
  ),
  "door-open": ("open the door", "pull the safe's door open"),
  "door-unlock": (
    "unlock the door",
    "turn the lock of the door to open it",
  ),
  "hand-insert": (
    "reach into the hole",
    "put the gripper into the gap in the table",
  ),
  "drawer-close": ("close the drawer", "push the drawer in"),
  "drawer-open": ("open the drawer", "pull the drawer out"),
  "faucet-open": ("open the tap", "turn the faucet on"),
  "faucet-close": ("close the tap", "turn the faucet off"),
  "hammer": (
    "hammer the nail in",
    "hit the nail with the hammer",
    "drive the screw into the wall with the hammer",
  ),
  "handle-press-side": (
    "press the handle down from the side",
    "push the lever at the side down",
  ),
  "handle-press": ("press the handle down", "push down the handle"),
  "handle-pull-side": (
    "pull the handle up from the side",
    "lift the handle sideways",
  ),
  "handle-pull": ("pull the handle up", "lift the handle"),
  "lever-pull": ("pull the lever up", "swing the lever upwards"),
  "pick-place-wall": (
    "pick up the puck and carry it over the wall",
    "lift the red piece across the brick wall",
  ),
  "pick-out-of-hole": (
    "pick the puck out of the hole",
    "get the red piece out of the pit",
  ),
  "pick-place": (
    "pick up the puck and hold it at the goal",
    "lift the red piece to the marked point",
  ),
  "plate-slide": (
    "slide the plate into the goal",
    "push the black disc into the net",
  ),
  "plate-slide-side": (
    "slide the plate sideways into the net",
    "push the black disc to the side into the goal",
  ),
  "plate-slide-back": (
    "slide the plate back out of the goal",
    "pull the black disc out of the net",
  ),
  "plate-slide-back-side": (
    "slide the plate sideways out of the net",
    "pull the black disc out to the side",
  ),
  "peg-insert-side": (
    "insert the peg into the hole at the side",
    "stick the green bar into the box",
  ),
  "peg-unplug-side": (
    "pull the peg out of the hole",
    "unplug the bar from the box",
  ),
  "soccer": (
    "kick the ball into the goal",
    "push the soccer ball into the net",
    "score with the football",
  ),
  "stick-push": (
    "push the thermos with the stick",
    "take the blue stick and shove the flask",
  ),
  "stick-pull": (
    "pull the thermos with the stick",
    "hook the flask's handle with the stick and drag it",
  ),
  "push": ("push the puck to the goal", "shove the red piece to the mark"),
  "push-wall": (
    "push the puck round the wall",
    "shove the red piece past the bricks",
  ),
  "push-back": (
    "pull the block back to the goal",
    "drag the wooden block backwards",
  ),
  "reach": (
    "reach the goal point",
    "move the gripper to the mark",
    "go to the red spot",
  ),
  "reach-wall": (
    "reach the point behind the wall",
    "move the gripper to the mark beyond the bricks",
  ),
  "shelf-place": (
    "put the block on the shelf",
    "place the cube into the shelf",
  ),
  "sweep-into": (
    "sweep the cube into the hole",
    "wipe the block into the pit",
  ),
  "sweep": ("sweep the cube off the table", "wipe the block over the edge"),
  "window-open": ("open the window", "slide the window open"),
  "window-close": ("close the window", "slide the window shut"),
}
FRAMES = ("{}", "{}", "{}.", "the robot should {}", "a robot arm: {}", "{} now")
LEFT_RIGHT = (
  ("on the left", "at the left side"),
  ("in the middle", "at the centre"),
  ("on the right", "at the right side"),
)
NEAR_FAR = (
  ("near the robot", "close to the arm"),
  ("half way", "at medium distance"),
  ("far from the robot", "at the far end"),
)
