# For bash-completion, which reads this at the first Tab.
source <(snigate completions bash)
