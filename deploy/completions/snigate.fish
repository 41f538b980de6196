# For fish, which reads this at the first Tab.
snigate completions fish | source
