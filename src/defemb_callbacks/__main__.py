"""`python -m defemb_callbacks`, and so `accelerate launch -m defemb_callbacks build …`."""

from defemb_callbacks.cli import main

if __name__ == "__main__":
    main()
