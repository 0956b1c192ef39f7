"""The policies of the dispatcher, one a file. [pure]"""
