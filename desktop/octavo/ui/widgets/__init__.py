"""Widgets that know no feature: buttons, cards, notices, toasts, dialogs."""
