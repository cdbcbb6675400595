"""What several providers share; which base class a provider's options and model derive from:

Plain     a model in this process, without a service (plain.py)
Service   a service, whose requests share a rate limit and a budget (http.py)
Prompt      one that takes prompts from the pipeline file (prompts.py)
Remote      one at an address of the user's (http.py)
Hosted        one that sells its own models, with prices and limits in prices.csv (hosted.py)
"""
